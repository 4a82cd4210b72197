"""``make demo``: a small mesh with a real Envoy, watched through meshpulse."""
