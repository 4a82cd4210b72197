"""Envoy's own outlier rules on our counters, to compare a policy with what Envoy would do, field by field."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from health.policy import EnvoyRule


def envoy_flags(
    errors: NDArray[np.float64], attempts: NDArray[np.float64], rule: EnvoyRule
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float64]]:
    """Envoy's success-rate and failure-percentage rules, each observer for itself.

    Parameters
    ----------
    errors, attempts : (P, H) float64     of one ``interval``; ejected hosts have no attempts

    Returns
    -------
    success_rate, failure_percentage : (P, H) bool     what that observer's Envoy would eject
    thresholds : (P,) float64                          ejection threshold of the success rate, NaN when not judged

    Source: ``DetectorImpl::processSuccessRateEjections`` of Envoy 1.40, outlier_detection_impl.cc.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        success = 100.0 * (attempts - errors) / attempts
    valid = attempts >= max(1, rule.success_rate_request_volume)
    hosts = np.count_nonzero(valid, axis=1)
    rates = np.where(valid, success, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = rates.sum(axis=1) / hosts
        variance = np.where(valid, (success - mean[:, None]) ** 2, 0.0).sum(axis=1) / hosts
    thresholds = mean - rule.success_rate_stdev_factor / 1000.0 * np.sqrt(variance)
    thresholds[(hosts < rule.success_rate_minimum_hosts) | (hosts == 0)] = np.nan
    by_success = valid & (success < thresholds[:, None])
    valid = attempts >= max(1, rule.failure_percentage_request_volume)
    hosts = np.count_nonzero(valid, axis=1)
    enough = (hosts >= rule.failure_percentage_minimum_hosts)[:, None]
    by_percentage = valid & enough & (100.0 - success >= rule.failure_percentage_threshold)
    return by_success, by_percentage, thresholds
