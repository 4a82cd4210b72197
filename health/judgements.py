"""Routes of the API that judge stored history: comparisons, rollout gates, replays."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, TypeVar

from health.api import Answer, ApiError, HealthApi, Request, success, time_ms
from health.compare import MARGIN, Side, compare_sides
from health.gates import BURN_MS, STATUS, burn, gate
from health.history import Totals, read_totals
from health.past import Past, Plan
from health.policy_text import parse_duration_ms, parse_policy
from health.replay import TICKS_MAX, explain_past, replay
from health.rollout import MIN_REQUESTS, judge_rollout
from health.rollout_counts import read_rollout
from health.runner import HealthRunner
from health.slo import burn_rates
from query.engine.engine import Engine
from query.errors import QueryError
from query.result import VectorResult
from query.storage import Storage
from tsdb.errors import LimitError
from tsdb.logs.frame import LogReader

T = TypeVar("T")
_WINDOW_MS_MAX = 6 * 3_600_000


class Judgements:
    """Adds its routes to the API; reading history runs on threads of its own, never on the loop's.

    Parameters
    ----------
    frames : the tenant that is read
    engine : evaluates the queries of ``slo``
    folder : where the loop notes when samples arrived; None = nowhere
    logs : where the error logs of nginx are, for gates of sites
    """

    def __init__(
        self,
        runner: HealthRunner,
        frames: Storage,
        executor: Executor,
        engine: Engine,
        folder: Path | None = None,
        logs: LogReader | None = None,
    ) -> None:
        self._runner = runner
        self._frames = frames
        self._executor = executor
        self._engine = engine
        self._folder = folder
        self._rerunning = asyncio.Lock()
        self._logs = logs

    def add_to(self, api: HealthApi) -> None:
        """Serve ``compare``, ``gates``, ``replay``, ``slo`` and explanations of the past."""
        api.explain_past = self._explain
        api.add_route("GET", "compare", self._compare)
        api.add_route("POST", "replay", self._replay)
        api.add_route("GET", "slo", self._slo)
        for method in ("GET", "POST"):
            api.add_route(method, r"gates/(?P<rollout>[^/]+)", self._gate)

    async def _compare(self, request: Request, _: re.Match[str]) -> Answer:
        service = request.needed("service")
        candidate = _side(request.needed("candidate"))
        baseline = _side(request.param("baseline")) if request.param("baseline") else None
        data, warnings = await self._compared(service, candidate, baseline, request.params)
        return success(data, warnings=warnings)

    async def _gate(self, request: Request, found: re.Match[str]) -> Answer:
        params: dict[str, str] = dict(request.params)
        if request.method == "POST" and request.body:
            params |= {key: str(value) for key, value in request.json().items()}
        if params.get("site") or params.get("host"):
            return await self._site_gate(params, found["rollout"])
        service, version = params.get("service") or params.get("cluster"), params.get("version")
        if not service or not version:
            raise ApiError("bad_data", "service and version are needed, or site or host")
        health, now_ms = self._runner.health, self._runner.clock.now_ms()
        compared, warnings = await self._compared(service, Side("version", version), None, params)
        view = health.board.now.services.get(service)
        evaluation = await self._runner.call(health.evaluations.get, service)
        checks = await self._burn(service, version, params["objective"]) if params.get("objective") else []
        data = gate(compared, version, view, evaluation, now_ms, checks)
        data |= {"rollout": found["rollout"], "service": service, "revision": str(health.board.now.revision)}
        status = 200 if params.get("status") == "200" else STATUS[data["verdict"]]
        return success(data, status, warnings=warnings)

    async def _burn(self, service: str, version: str, text: str) -> list[dict[str, Any]]:
        objective, health = _objective(text), self._runner.health
        now_ms = self._runner.clock.now_ms()

        def read() -> Totals:
            return read_totals(self._frames, health.mappings, service, now_ms - BURN_MS, now_ms)

        totals = await self._read(read)
        new = Side("version", version).columns(totals, health.facts.get(service, {}))
        return [burn(totals, new, objective)]

    async def _read(self, read: Callable[[], T]) -> T:
        """Read history beside the loop."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, read)
        except LimitError as error:
            raise ApiError("execution", str(error)) from None

    async def _site_gate(self, params: Mapping[str, str], rollout: str) -> Answer:
        """A change of an nginx configuration."""
        now_ms = self._runner.clock.now_ms()
        changed_ms = time_ms(params.get("changed_at", ""), "changed_at")
        if changed_ms is None:
            raise ApiError("bad_data", "changed_at is needed: when the configuration was changed")
        try:
            baseline_ms = parse_duration_ms(params.get("baseline") or "10m")
            least = int(params.get("min_requests") or MIN_REQUESTS)
        except ValueError as error:
            raise ApiError("bad_data", str(error)) from None
        if not 0 < baseline_ms <= _WINDOW_MS_MAX or not 0 <= now_ms - changed_ms <= _WINDOW_MS_MAX or least < 1:
            raise ApiError(
                "bad_data", "changed_at must lie in the last 6h, baseline be at most 6h, min_requests positive"
            )
        site, host = params.get("site", ""), params.get("host", "")
        updated = [name for name in params.get("updated", "").split(",") if name]

        def judged() -> tuple[dict[str, Any], list[str]]:
            counts = read_rollout(
                self._frames,
                self._logs,
                site=site,
                host=host,
                changed_ms=changed_ms,
                baseline_ms=baseline_ms,
                now_ms=now_ms,
            )
            data = judge_rollout(counts, site=site, host=host, now_ms=now_ms, updated=updated, min_requests=least)
            return data, list(counts.warnings)

        data, warnings = await self._read(judged)
        status = 200 if params.get("status") == "200" else STATUS[data["verdict"]]
        return success({"rollout": rollout, **data}, status, warnings=warnings)

    async def _replay(self, request: Request, _: re.Match[str]) -> Answer:
        data, health = request.json(), self._runner.health
        unknown = data.keys() - {"service", "policy", "start", "end", "step"}
        if unknown:
            raise ApiError("bad_data", f"unknown key {min(unknown)}")
        service = data.get("service")
        if not isinstance(service, str) or not service:
            raise ApiError("bad_data", "service is needed")
        start_ms = time_ms(str(data.get("start", "")), "start")
        end_ms = time_ms(str(data.get("end", "")), "end") or self._runner.clock.now_ms()
        if start_ms is None or end_ms <= start_ms:
            raise ApiError("bad_data", "start is needed, and end must be later")
        try:
            policy = (
                parse_policy(data["policy"]) if "policy" in data else await self._runner.call(health.policy_of, service)
            )
            step_ms = parse_duration_ms(data.get("step", policy.eval_interval_ms / 1000))
        except ValueError as error:
            raise ApiError("bad_data", str(error)) from None
        if not 100 <= step_ms <= 60_000:
            raise ApiError("bad_data", "step must be between 100ms and 60s")
        plan = Plan(service, policy, start_ms, end_ms, step_ms)
        return success(await self._rerun(plan, lambda: replay(plan, self._past())))

    async def _explain(self, request: Request, _: re.Match[str]) -> Answer:
        service, endpoint = request.needed("service"), request.needed("endpoint")
        end_ms = time_ms(request.param("time"), "time")
        assert end_ms is not None, "the API answers explanations of now itself"
        policy = await self._runner.call(self._runner.health.policy_of, service)
        plan = Plan(service, policy, end_ms - policy.eval_interval_ms, end_ms, policy.eval_interval_ms)
        data, approximations = await self._rerun(plan, lambda: explain_past(plan, self._past(), endpoint))
        return success(data | {"approximations": approximations}, warnings=approximations)

    def _past(self) -> Past:
        health = self._runner.health
        return Past(self._frames, health.mappings, health.facts, health.events, self._folder)

    async def _rerun(self, plan: Plan, run: Callable[[], T]) -> T:
        """Run something over history, one at a time."""
        if plan.ticks > TICKS_MAX:
            raise ApiError("execution", f"that is {plan.ticks:,} evaluations, at most {TICKS_MAX:,} are run at once")
        if self._rerunning.locked():
            raise ApiError("unavailable", "another replay is running")
        async with self._rerunning:
            return await self._read(run)

    async def _slo(self, request: Request, _: re.Match[str]) -> Answer:
        service, objective = request.needed("service"), _objective(request.param("objective", "0.999"))
        now_ms, warnings = self._runner.clock.now_ms(), []

        def ask(query: str) -> float | None:
            try:
                value = self._engine.instant(self._frames, query, now_ms).value
            except QueryError as error:
                warnings.append(str(error))
                return None
            if not isinstance(value, VectorResult) or not len(value.values):
                return None
            ratio = float(value.values[0, 0])
            return ratio if math.isfinite(ratio) else None

        def rates() -> dict[str, Any]:
            return burn_rates(service, objective, self._runner.health.mappings, ask)

        data = await asyncio.get_running_loop().run_in_executor(self._executor, rates)
        return success(data, warnings=sorted(set(warnings)))

    async def _compared(
        self, service: str, candidate: Side, baseline: Side | None, params: Mapping[str, str]
    ) -> tuple[dict[str, Any], list[str]]:
        try:
            window_ms = parse_duration_ms(params.get("window") or "10m")
            margin = float(params.get("margin") or MARGIN)
        except ValueError as error:
            raise ApiError("bad_data", str(error)) from None
        if not 0 < window_ms <= _WINDOW_MS_MAX or not 0 < margin < 1:
            raise ApiError("bad_data", "window must be at most 6h and margin between 0 and 1")
        health, now_ms = self._runner.health, self._runner.clock.now_ms()

        def read() -> Totals:
            return read_totals(self._frames, health.mappings, service, now_ms - window_ms, now_ms)

        totals = await self._read(read)
        policy = await self._runner.call(health.policy_of, service)
        data = compare_sides(totals, health.facts.get(service, {}), candidate, baseline, policy, margin)
        return {"service": service, "window": f"{window_ms // 1000}s", **data}, list(totals.warnings)


def _objective(text: str) -> float:
    try:
        objective = float(text)
    except ValueError:
        objective = 0.0
    if not 0 < objective < 1:
        raise ApiError("bad_data", "objective must lie between 0 and 1")
    return objective


def _side(text: str) -> Side:
    try:
        return Side.parse(text)
    except ValueError as error:
        raise ApiError("bad_data", str(error)) from None
