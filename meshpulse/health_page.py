"""``/health``: services, endpoints, reasons and events for a person to watch; one page that asks the API, no build."""

from __future__ import annotations

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>meshpulse health</title>
<meta name="viewport" content="width=device-width">
<style>
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:76rem;padding:0 1rem;color:#1c2733}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin:1.6rem 0 .4rem}
table{border-collapse:collapse;width:100%}th{text-align:left;font-weight:600;color:#5b6b7c}
td,th{padding:.25rem .8rem .25rem 0;vertical-align:top;border-bottom:1px solid #e4e9ee;white-space:nowrap}
td.why{white-space:normal;width:100%}
.s{display:inline-block;min-width:5.5rem;text-align:center;border-radius:.6rem;padding:0 .5rem;background:#e4e9ee}
.healthy,.recovered,.thaw{background:#cdeed6}.suspect,.blocked,.freeze,.partial_view{background:#fdeeb5}
.ejected,.incident,.lease_expired{background:#f7c4c0}.probation,.ramp{background:#cfe2fb}
small,.dim{color:#5b6b7c}code{font-size:.9em}#stale{color:#b3261e}
button{font:inherit;border:0;background:none;padding:0;color:#1a56b0;cursor:pointer;text-align:left}
pre{margin:.2rem 0;padding:.6rem .8rem;background:#f5f7f9;border-radius:.4rem;white-space:pre-wrap;font-size:.85em}
</style>
<h1>meshpulse health <small id="revision"></small> <small id="stale"></small></h1>
<div id="services">Nothing is judged yet: no series match <code>health.mappings</code>.</div>
<h2>Events</h2><table><tbody id="events"><tr><td class="dim">none yet</td></tr></tbody></table>
<p class="dim">Times are this computer's. Click an endpoint for the statistics, gates and guards behind its state.</p>
<script>
const el = (name, text, kind) => {
  const e = document.createElement(name);
  if (text !== undefined) e.textContent = text;
  if (kind) e.className = kind;
  return e;
};
const row = (cells) => {
  const tr = el("tr");
  for (const c of cells) { const td = el("td"); td.append(c); tr.append(td); }
  tr.lastChild.className = "why";
  return tr;
};
const time = (t) => t ? new Date(t).toLocaleTimeString("en-GB") : "";
const left = (t) => {
  const s = Math.max(0, Math.round((new Date(t) - now) / 1000));
  return s < 120 ? s + " s" : Math.round(s / 60) + " min";
};
const number = (v) => typeof v === "number" && !Number.isInteger(v) ? v.toPrecision(4) : String(v);
const mark = (ok) => ok ? "  yes " : "  no  ";
const opens = (service, endpoint) => {
  const key = service + " " + endpoint;
  opened = opened && opened.key === key ? null : {key, service, endpoint};
};
let now = new Date(), opened = null;

function explained(d) {
  const lines = [], seen = d.conviction;
  if (seen) lines.push("convicted " + time(seen.time) + " by " + seen.detector + ": " + seen.reason);
  if (d.statistics) {
    lines.push(d.statistics.detector + " over the last " + d.statistics.window + ":");
    for (const c of d.conditions)
      lines.push(mark(c.ok) + c.name.padEnd(14) + number(c.value).padStart(12) + "   needs " + c.needs);
  }
  lines.push(d.counterfactual, "would the guards let it be ejected now?");
  for (const g of d.guards)
    lines.push(mark(g.ok) + g.name.padEnd(14) +
      Object.entries(g.detail).map(([k, v]) => k.replaceAll("_", " ") + " " + number(v)).join(", "));
  for (const o of d.per_observer || [])
    lines.push("  " + o.observer.padEnd(28) + (o.errors + " of " + o.requests).padStart(14) +
      "   peers " + o.peer_errors + " of " + o.peer_requests);
  return lines.join("\\n") + "\\n\\n" + d.promql;
}
function state(s) {
  const notes = [s.mode === "enforce" ? "enforced" : "dry run: no proxy is told", s.endpoints + " endpoints"];
  notes.push(s.observers.reporting + " of " + s.observers.known + " observers report");
  if (s.counted === "seen") notes.push("nobody lists its endpoints: caps count those seen");
  if (s.frozen) notes.push("nothing is decided: warming up, or data are not fresh");
  if (s.incident) notes.push("incident, " + s.incident);
  return notes.join(" · ");
}
function show(data, services, detail) {
  document.getElementById("revision").textContent = "revision " + data.revision + ", data of " + time(data.data_as_of);
  now = new Date(data.evaluated_at);
  if (!services.length) return;
  const parts = [];
  for (const s of services) {
    const h = el("h2", s.service + " "), table = el("table"), head = el("tr");
    h.append(el("small", state(s)));
    const mine = data.endpoints.filter((e) => e.service === s.service);
    const zones = mine.some((e) => e.locality.zone), versions = mine.some((e) => e.version);
    const names = ["endpoint", ...(zones ? ["zone"] : []), ...(versions ? ["version"] : []),
      "state", "weight", "since", "left", "why"];
    for (const name of names) head.append(el("th", name));
    table.append(head);
    for (const e of mine) {
      const name = el("button"), key = s.service + " " + e.endpoint;
      name.append(el("code", e.endpoint));
      name.onclick = () => { opens(s.service, e.endpoint); look(); };
      const why = e.reason + (e.guards.blocked ? " (held back by " + e.guards.blocked_by + ")" : "");
      table.append(row([name, ...(zones ? [e.locality.zone] : []), ...(versions ? [e.version] : []),
        el("span", e.state, "s " + e.state), Math.round(100 * e.weight_factor) + " %", time(e.since),
        e.until ? left(e.until) : "", why]));
      if (detail && opened && opened.key === key) {
        const tr = el("tr"), td = el("td");
        td.colSpan = names.length;
        td.append(el("pre", explained(detail)));
        tr.append(td);
        table.append(tr);
      }
    }
    parts.push(h, table);
  }
  document.getElementById("services").replaceChildren(...parts);
}
async function get(path) {
  const reply = await fetch("api/v1/health/" + path);
  if (!reply.ok) throw new Error(reply.status);
  return (await reply.json()).data;
}
let timer;
async function look() {
  clearTimeout(timer);
  try {
    const wanted = opened && new URLSearchParams({service: opened.service, endpoint: opened.endpoint});
    const [data, services, events, detail] = await Promise.all([get("endpoints"), get("services"),
      get("events?limit=60"), wanted ? get("explain?" + wanted).catch(() => null) : null]);
    show(data, services.services, detail);
    if (events.events.length)
      document.getElementById("events").replaceChildren(...events.events.reverse().map((e) =>
        row([time(e.time), el("span", e.type.replaceAll("_", " "), "s " + e.type), e.service,
          el("code", e.endpoint || ""), (e.reason || "") + (e.mode ? "" : " (" + e.by + ")")])));
    document.getElementById("stale").textContent = "";
  } catch (error) {
    document.getElementById("stale").textContent = "no answer (" + error.message + ")";
  }
  timer = setTimeout(look, 1000);
}
const asked = new URLSearchParams(location.search);
if (asked.get("endpoint")) opens(asked.get("service"), asked.get("endpoint"));
look();
</script></html>
"""
