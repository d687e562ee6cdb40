"""What is compared, and what loads it: programs with their commands and configurations."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Program:
    """A program that is run here.

    In its command and configuration, $port is where it listens and $target the port that it forwards to.
    """

    title: str
    install: str  # the command that installs it
    version: str  # the command that tells
    command: str
    config: str = ""
    only: str = ""  # the works that it is for, as a pattern; and why:
    why: str = ""
    tls: str = ""  # the configuration with which it terminates TLS, with key and certificate in $folder/tls.pem

    def why_not(self, work: str, *, tls: bool) -> str:
        """Return why it is not measured at a work, or nothing."""
        if not re.match(self.only, work):
            return self.why
        return "" if self.tls or not tls else "it terminates no TLS here"


APT = "apt-get install "
RULE = "127.0.0.1:$port,127.0.0.1,$target\n"
HAPROXY = """
global
    nbthread 1
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen pump
    bind 127.0.0.1:$port backlog 4096
    server target 127.0.0.1:$target
"""
HAPROXY_TLS = HAPROXY.replace("backlog 4096", "backlog 4096 ssl crt $folder/tls.pem")
STUNNEL = """
foreground = yes
pid =
debug = err
[pump]
accept = 127.0.0.1:$port
connect = 127.0.0.1:$target
cert = $folder/tls.pem
"""
NGINX = "daemon off; master_process off; pid $folder/pid; error_log stderr; events { worker_connections 16384; }\n"
FOLDERS = " ".join(f"{name}_temp_path $folder/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
PROXIES = {
    "veillink": Program(
        "VeilLink", "", "$veillink --version", "$veillink --config $config --no-access-log", RULE,
        tls=RULE.strip() + ",tls=$folder/tls.pem\n",
    ),
    "veillink-log": Program("VeilLink, access log", "", "$veillink --version", "$veillink --config $config", RULE),
    "haproxy": Program(
        "HAProxy", APT + "haproxy", "haproxy -v", "haproxy -db -f $config", HAPROXY, tls=HAPROXY_TLS
    ),
    "haproxy-splice": Program(
        "HAProxy, splice-auto", APT + "haproxy", "haproxy -v", "haproxy -db -f $config",
        HAPROXY + "    option splice-auto\n", only="bulk", why="it differs from HAProxy only in bulk",
    ),
    "nginx": Program(
        "nginx stream", APT + "nginx libnginx-mod-stream", "nginx -v", "nginx -e stderr -p $folder -c $config",
        "$module\n" + NGINX
        + "stream { server { listen 127.0.0.1:$port backlog=4096; proxy_pass 127.0.0.1:$target; } }",
        tls="$module\n" + NGINX
        + "stream { server { listen 127.0.0.1:$port ssl backlog=4096; proxy_pass 127.0.0.1:$target;"
        + " ssl_certificate $folder/tls.pem; ssl_certificate_key $folder/tls.pem; ssl_protocols TLSv1.2 TLSv1.3; } }",
    ),
    "stunnel": Program(
        "stunnel", APT + "stunnel4", "stunnel4 -version", "stunnel4 $config", STUNNEL,
        only="tls", why="it is for TLS", tls=STUNNEL,
    ),
    "rinetd": Program(
        "rinetd", APT + "rinetd", "rinetd -v", "rinetd -f -c $config",
        "pidlogfile $folder/pid\n127.0.0.1 $port 127.0.0.1 $target\n",
    ),
    "socat": Program(
        "socat", APT + "socat", "socat -V",
        "socat TCP4-LISTEN:$port,bind=127.0.0.1,reuseaddr,fork,backlog=4096 TCP4:127.0.0.1:$target",
        only="bulk|keep1$|keep50$|close", why="it is a process for each connection",
    ),
    "gevent": Program(
        "plain gevent pump", "", "$python -c 'import gevent; print(gevent.__version__)'",
        "$python $peers/gevent_pump.py $port $target",
    ),
    "pproxy": Program(
        "pproxy", ".venv/bin/pip install pproxy", "pproxy --version",
        "pproxy -l tunnel{127.0.0.1:$target}://127.0.0.1:$port"
    ),
    "erlang": Program(
        "Erlang pump", APT + "erlang-base",
        "erl -noshell -eval 'io:put_chars(erlang:system_info(otp_release)),halt().'",
        "escript $peers/erlang_pump.escript $port $target",
    ),
}  # fmt: skip
BASE = "haproxy"
DIRECT = Program("direct, no proxy", "", "", "", only="(?!idle|tls)", why="there is no proxy to look at")
WRK = Program(
    "wrk", APT + "wrk", "wrk -v", "wrk -t1 -c$connections -d${seconds}s -s $peers/report.lua $scheme://127.0.0.1:$port/"
)
BACKEND = Program(
    "nginx-http", APT + "nginx", "nginx -v", "nginx -e stderr -p $folder -c $config",
    NGINX + "http { access_log off; keepalive_requests 1000000000; " + FOLDERS
    + " server { listen 127.0.0.1:$port backlog=4096; location / { return 200 hello; } } }",
)  # fmt: skip
