"""Make the project's virtual environment: what `make` runs before anything else.

Standard library only, and in syntax that old interpreters parse, so that the error for an old Python can be shown at
all. Does nothing when the environment already holds what the lock and pyproject.toml say.

    python3 scripts/setup_env.py VENV [EXTRA]
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OLDEST = (3, 11)
SPACE_GIB = 3


def stop(problem, remedy):
    """Leave with one line that says what is wrong and what to do."""
    sys.exit("setup: {}. {}".format(problem, remedy))


def newer_interpreter():
    """A Python ≥ 3.11 on the PATH, for when `python3` itself is older."""
    for minor in (13, 12, 11):
        found = shutil.which("python3.{}".format(minor))
        if found and subprocess.call([found, "-c", "import venv"], stderr=subprocess.DEVNULL) == 0:
            return found
    return None


def use_supported_python():
    """Go on under Python ≥ 3.11, or say how to get one."""
    if sys.version_info >= OLDEST:
        return
    found = newer_interpreter()
    if found is None:
        version = ".".join(map(str, sys.version_info[:3]))
        stop(
            "Python {}.{} or newer is needed, and this is {}".format(OLDEST[0], OLDEST[1], version),
            "Install one and run `make PYTHON=/path/to/python3.11 ...`",
        )
    os.execv(found, [found, *sys.argv])


def fingerprint(extra):
    """What the environment depends on."""
    digest = hashlib.sha256(("%s %s" % (sys.version, extra)).encode())
    for name in ("requirements-dev.txt", "pyproject.toml"):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def run(title, command):
    """Run one step, quietly while it goes well, with its output and the likely remedy when it does not."""
    print("setup: {} ...".format(title), end="", flush=True)
    start = time.time()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode == 0:
        print(" {:.0f} s".format(time.time() - start))
        return
    print(" failed\n" + done.stdout[-4000:])
    stop("{} failed".format(title), remedy_for(done.stdout))


def remedy_for(output):
    """What the user can do about a failed step, read off its output."""
    if "No space left" in output:
        return "The disk is full: free {} GiB and run the same command again".format(SPACE_GIB)
    if "ensurepip" in output:
        return "Python's venv module is incomplete: install it (Debian, Ubuntu: `apt install python3-venv`)"
    if "connection" in output.lower() or "resolve" in output.lower() or "No matching distribution" in output:
        return "The package index was not reached: check the network or pip's index settings, then run it again"
    return "Read the output above; `make clean` removes the environment to start afresh"


def main():
    """Create or refresh the environment."""
    use_supported_python()
    venv = os.path.abspath(sys.argv[1])
    extra = sys.argv[2] if len(sys.argv) > 2 else ""
    stamp = os.path.join(venv, "mi_align.stamp")
    wanted = fingerprint(extra)
    if os.path.exists(stamp):
        with open(stamp) as file:
            if file.read() == wanted:
                return
    free = shutil.disk_usage(ROOT).free / 2**30
    if free < SPACE_GIB:
        stop("only {:.1f} GiB of disk are free".format(free), "Free {} GiB and run it again".format(SPACE_GIB))
    run(
        "creating {} with Python {}.{}".format(os.path.basename(venv), *sys.version_info[:2]),
        [sys.executable, "-m", "venv", "--clear", venv],
    )
    python = os.path.join(venv, "bin", "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(
        "installing the locked dependencies, a minute or two",
        [*pip, "--require-hashes", "-r", os.path.join(ROOT, "requirements-dev.txt")],
    )
    if extra:
        run("installing the extra {!r}".format(extra), [*pip, "{}[{}]".format(ROOT, extra), "--no-build-isolation"])
    run("installing mi_align", [*pip, "--no-deps", "--no-build-isolation", "--editable", ROOT])
    with open(stamp, "w") as file:
        file.write(wanted)


if __name__ == "__main__":
    main()
