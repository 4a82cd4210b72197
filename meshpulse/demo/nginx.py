"""A real nginx in front of several sites, with logs that meshpulse reads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from meshpulse.demo.mesh import Upstream
from meshpulse.demo.processes import Child
from meshpulse.demo.serve import free_port

SITES = ("shop.example", "blog.example")
REQUESTS_PER_SECOND = 20.0
"""For each site."""

ACCESS_JSON = (
    '{"time":$msec,"server_name":"$server_name","host":"$host","remote_addr":"$remote_addr",'
    '"method":"$request_method","path":"$uri","status":$status,"body_bytes_sent":$body_bytes_sent,'
    '"request_time":$request_time,"upstream_addr":"$upstream_addr","upstream_status":"$upstream_status",'
    '"upstream_response_time":"$upstream_response_time","upstream_connect_time":"$upstream_connect_time",'
    '"request_id":"$request_id","user_agent":"$http_user_agent"}'
)
"""The ``log_format`` that docs/logs.md recommends."""


def find_nginx() -> Path | None:
    """The program, also where Debian keeps it out of a user's PATH; None = it is not installed."""
    found = shutil.which("nginx", path=None) or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def nginx_config(folder: Path, port: int, sites: Mapping[str, Sequence[str]], tries: int = 2) -> str:
    """A configuration that serves sites on one port, each in front of the addresses of its servers.

    nginx' own detector (``max_fails``) is off, so that what fails goes on to be seen; a failed attempt is tried again
    at another server, ``tries`` in all. Each site logs to ``access.json``, and in the combined format to
    ``SITE.combined.log``.
    """
    servers = ""
    for site, addresses in sites.items():
        group = site.replace(".", "_") + "_app"
        members = " ".join(f"server {address} max_fails=0;" for address in addresses)
        servers += f"""
  upstream {group} {{ {members} }}
  server {{
    listen 127.0.0.1:{port};
    server_name {site};
    access_log {folder}/access.json access_json;
    access_log {folder}/{site}.combined.log combined;
    location / {{
      proxy_pass http://{group};
      proxy_connect_timeout 2s;
      proxy_next_upstream error timeout http_500;
      proxy_next_upstream_tries {tries};
    }}
  }}"""
    temporary = "".join(f"{kind}_temp_path {folder}/{kind}; " for kind in ("client_body", "proxy", "fastcgi"))
    temporary += "".join(f"{kind}_temp_path {folder}/{kind}; " for kind in ("uwsgi", "scgi"))
    # as root its workers would change to a user who may not reopen the logs in our folder
    user = "user root;\n" if os.geteuid() == 0 else ""
    return f"""{user}worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
  {temporary}
  log_format access_json escape=json '{ACCESS_JSON}';{servers}
}}
"""


def nginx_command(program: Path, folder: Path) -> list[str]:
    """How to start it on ``folder/nginx.conf``."""
    return [str(program), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]


def nginx_files(folder: Path) -> dict[str, object]:
    """The section ``nginx`` of our configuration that reads these logs."""
    labels = {"env": "demo", "host": "nginx-1"}
    return {
        "files": [
            {"paths": [str(folder / "access.json")], "labels": labels, "site_field": "server_name"},
            {"paths": [str(folder / "error.log")], "log": "error", "labels": labels},
        ],
        "metrics": {"interval": "1s"},
        "poll_interval": "200ms",
    }


async def start_nginx(folder: Path, upstreams: Sequence[Upstream]) -> tuple[Child, str] | None:
    """nginx before the upstreams, half of them for each site, and its address; None = it is not installed."""
    program = find_nginx()
    if program is None:
        return None
    port = free_port()
    half = len(upstreams) // 2
    addresses = [f"127.0.0.1:{upstream.port}" for upstream in upstreams]
    sites = dict(zip(SITES, (addresses[:half], addresses[half:]), strict=True))
    (folder / "nginx.conf").write_text(nginx_config(folder, port, sites, tries=1))
    return await Child.start("nginx", nginx_command(program, folder), folder), f"127.0.0.1:{port}"
