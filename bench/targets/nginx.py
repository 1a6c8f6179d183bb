"""nginx as a reverse proxy: the yardstick, near what a proxy can do on one core.

Tuned as its own manual says: connections kept on both sides, no access log, buffers that hold an
answer, and no buffering where answers are streamed.
"""

import os
import shutil
import subprocess

from bench.processes import Child, free_port
from bench.targets.base import Running, Site

_CONFIG = """\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
{user}
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 3600s;
    client_max_body_size 64m;
    client_body_buffer_size 1m;
    client_body_temp_path {folder}/client_body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_buffer_size 32k;
    proxy_buffers 16 32k;
    proxy_busy_buffers_size 256k;
    upstream engine {{
        server 127.0.0.1:{upstream_port};
        keepalive 512;
        keepalive_requests 1000000000;
        keepalive_timeout 3600s;
    }}
    server {{
        listen 127.0.0.1:{json_port} backlog=1024;
        location / {{ proxy_pass http://engine; }}
    }}
    server {{
        listen 127.0.0.1:{stream_port} backlog=1024;
        proxy_buffering off;
        location / {{ proxy_pass http://engine; }}
    }}
}}
"""


class Nginx:
    """One nginx with one worker."""

    name = "nginx"

    def missing(self) -> str | None:
        """Return how to install it, where it is not."""
        return None if _binary() else "nginx is not installed; run `python -m bench.setup`"

    def version(self) -> str:
        """Return what `nginx -v` says."""
        said = subprocess.run([_binary() or "", "-v"], capture_output=True, text=True, check=True)
        return said.stderr.strip().rpartition("/")[2]

    def start(self, site: Site) -> Running:
        """Write its configuration and start it."""
        json_port, stream_port = free_port(), free_port()
        config = site.folder / "nginx.conf"
        config.write_text(
            _CONFIG.format(
                folder=site.folder,
                # A worker of another user could not write below our folder.
                user="user root;" if os.geteuid() == 0 else "",
                upstream_port=site.upstream_port,
                json_port=json_port,
                stream_port=stream_port,
            )
        )
        child = Child(
            self.name,
            [_binary() or "", "-p", str(site.folder), "-c", str(config)],
            cores=set(site.cores),
            log=site.folder / "log",
        )
        running = Running(self.name, json_port, stream_port, child)
        try:
            child.wait_ready(json_port, "/v1/models", headers={}, within_s=10)
        except BaseException:
            child.stop()
            raise
        return running


def _binary() -> str | None:
    # Debian keeps it where only root's PATH looks.
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")
