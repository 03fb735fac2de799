"""A real PostgreSQL server of the tests' own, in a temporary folder, reached by a socket there."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

from limits import LIMIT

MISSING = "no PostgreSQL server: apt-get install postgresql"
PATIENTLY = ("-w", "-t", str(round(LIMIT)))  # seconds


def find_programs():
    """Return the folder of `initdb` and `pg_ctl`, or None; Debian keeps them off the path."""
    found = [Path(path).parent for path in [shutil.which("initdb")] if path]
    found += sorted(path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return next((folder for folder in reversed(found) if (folder / "pg_ctl").exists()), None)


class Server:
    """Runs until `stop`. Servers refuse to be root's, so then it is the user's that Debian makes for it."""

    def __init__(self, programs):
        self._programs = programs
        # Not pytest's, nor where a test has its temporary files: the server's user must reach it by a short name.
        self._folder = Path(tempfile.mkdtemp(prefix="quests", dir="/tmp"))
        self._names = (f"test{count}" for count in itertools.count())
        self._user = {}
        if os.geteuid() == 0:
            entry = pwd.getpwnam("postgres")
            os.chown(self._folder, entry.pw_uid, entry.pw_gid)
            self._user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        self._run("initdb", "-D", "data", "-U", "tester", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-c listen_addresses='' -c unix_socket_directories='{self._folder}' -c fsync=off"
        self._run("pg_ctl", *PATIENTLY, "-D", "data", "-l", "log", "-o", options, "start")

    def _run(self, program, *arguments):
        with open(os.devnull, "wb") as nowhere:  # not a pipe: the server would keep it open
            command = [str(self._programs / program), *arguments]
            subprocess.run(command, cwd=self._folder, stdout=nowhere, stderr=nowhere, check=True, **self._user)

    def address(self, name):
        """Return the address of a database. It has a password, which this server does not ask for."""
        return f"postgresql://tester:sesame@/{name}?host={self._folder}"

    def make(self):
        """Make an empty database; return its address."""
        import psycopg2

        name = next(self._names)
        connection = psycopg2.connect(self.address("postgres"))
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
        connection.close()
        return self.address(name)

    def restart(self):
        """End all connections as a server that breaks down, and start again."""
        self._run("pg_ctl", *PATIENTLY, "-D", "data", "-m", "immediate", "-l", "log", "restart")

    def stop(self):
        self._run("pg_ctl", *PATIENTLY, "-D", "data", "-m", "immediate", "stop")
        shutil.rmtree(self._folder)
