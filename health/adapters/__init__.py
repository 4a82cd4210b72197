"""Ways to let proxies act on verdicts. Each keeps to the same rules.

Without ``mode: enforce`` in the policy, the actuator lease, fresh data and a running loop, an adapter shows every
endpoint as its owner lists it: whatever goes wrong with us, all endpoints are used again (fail open). What the owner
says is echoed; of ours there is only the health status and a smaller weight.
"""
