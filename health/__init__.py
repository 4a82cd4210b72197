"""Fleet-wide outlier detection: what all proxies saw of an endpoint, judged together, guarded, and explained.

The decision core knows neither HTTP nor storage nor the time of day: :mod:`health.window` keeps what was counted,
:mod:`health.detectors` judges it, :mod:`health.machine` moves endpoints between states, :mod:`health.guards` refuses
what would do harm, :mod:`health.policy` holds every number any of them uses.
"""
