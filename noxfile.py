"""How the project is checked: `nox` runs lint, types and tests; `nox -l` lists all sessions."""

import filecmp
import os
import platform
import shutil
import sys
from pathlib import Path

import nox
from nox.command import CommandFailed
from packaging.specifiers import SpecifierSet

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False  # a Python that is not installed is skipped, with a warning

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
GENERATED = ROOT / "generated" / "worker_api"
PACKAGES = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
THIS_PYTHON = ".".join(platform.python_version_tuple()[:2])
REQUIRED = PROJECT["project"]["requires-python"]
if platform.python_version() not in SpecifierSet(REQUIRED):
    sys.exit(f"workerd needs Python {REQUIRED}, and {sys.executable} is {platform.python_version()}")
PYTHONS = sorted({*nox.project.python_versions(PROJECT), THIS_PYTHON})
nox.options.sessions = ["lint", "types", f"tests-{THIS_PYTHON}"]
# One more than there are processors: tests wait, too.
SEVERAL_FILES = ("--numprocesses", str(len(os.sched_getaffinity(0)) + 1), "--dist", "loadfile")
# Real processes on a machine that does something else meanwhile: what fails is made once more, and told in the summary.
RERUN = ("--reruns", "1")


def install(session: nox.Session, group: str, *, project: bool) -> None:
    """Install what is pinned for a dependency group, and the project itself without looking for anything newer."""
    session.install("--require-hashes", "-r", f"requirements/{group}.txt")
    if project:
        session.install("--no-deps", "--editable", ".")


def install_to_run(session: nox.Session, group: str) -> None:
    """Install all that it takes to run the project over and over."""
    install(session, group, project=True)
    # Each start would compile it anew, where the environment keeps Python from saving that.
    session.run("python", "-m", "compileall", "-q", *PACKAGES)


def lay_out_contract(session: nox.Session) -> Path:
    """Copy api.proto to where its package says it belongs, which buf and protoc go by."""
    tree = Path(session.create_tmp()) / "contract"
    shutil.rmtree(tree, ignore_errors=True)
    (tree / "worker" / "v1").mkdir(parents=True)
    shutil.copy(ROOT / "buf.yaml", tree)
    shutil.copy(ROOT / "api.proto", tree / "worker" / "v1")
    return tree


def generate_into(session: nox.Session, package: Path) -> None:
    """Make the worker_api package from api.proto."""
    tree = lay_out_contract(session)
    include = session.run(
        "python",
        "-c",
        "import google.rpc, pathlib; print(pathlib.Path(google.rpc.__path__[0]).parents[1])",
        silent=True,
    )
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    session.run(
        *("python", "-m", "grpc_tools.protoc", f"-I{tree}", f"-I{str(include).strip()}"),
        "--python_betterproto2_opt=client_generation=async,server_generation=async",
        *(f"--python_betterproto2_out={package}", "worker/v1/api.proto", "google/rpc/status.proto"),
        silent=True,
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, imports, the contract and the spelling; anything found is a failure."""
    install(session, "lint", project=True)
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports")
    session.run("codespell")
    with session.chdir(lay_out_contract(session)):
        session.run("buf", "lint")
        session.run("buf", "format", "--diff", "--exit-code")
    check_generated(session)


@nox.session
def types(session: nox.Session) -> None:
    """Check types, strictly, tests and this file included."""
    install(session, "types", project=True)
    session.run("mypy", *session.posargs)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests on each Python that is installed: `nox -s tests-3.13 -- -k stop` runs some of them on one."""
    install_to_run(session, "tests")
    session.run("pytest", *SEVERAL_FILES, *RERUN, *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """Run the tests that take long, several files at a time: thousands of jobs, cuts and bytes."""
    install_to_run(session, "tests")
    session.run("pytest", "-m", "slow", *SEVERAL_FILES, *RERUN, *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Run at full length what the tests do in short: a reader that is stuck for a minute while a job prints 2 GB."""
    install_to_run(session, "tests")
    session.env.update(WORKERD_STUCK_BYTES="2_000_000_000", WORKERD_STUCK_SECONDS="60")
    session.run("pytest", "-s", "tests/system/test_stuck_reader.py", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Break everything, over and over: minutes. `nox -s faults -- --seed 7` repeats a run."""
    install_to_run(session, "tests")
    session.run("pytest", "tests/faults", *session.posargs)


@nox.session
def damage(session: nox.Session) -> None:
    """Damage every kind of file, over 1,000 times: minutes. `nox -s damage -- --mutations 100` does less of it."""
    install_to_run(session, "tests")
    session.run("pytest", "tests/damage", "--show-capture=no", *session.posargs)


@nox.session
def hostile(session: nox.Session) -> None:
    """Attack a daemon, with 100,000 frames and all else: minutes. `nox -s hostile -- --seed 7` repeats a run."""
    install_to_run(session, "tests")
    session.run("pytest", "tests/hostile", *RERUN, *session.posargs)


@nox.session
def peers(session: nox.Session) -> None:
    """Run other people's programs against the daemon: sslscan, OpenSSL's and nghttp2's clients, grpcio, the journal."""
    install_to_run(session, "tests")
    tools = {"h2load": "nghttp2-client", "nghttp": "nghttp2-client", "openssl": "openssl", "sslscan": "sslscan"}
    install_tools(session, tools, "the tests that need it are skipped")
    session.run("pytest", "tests/peers", *RERUN, *session.posargs)


@nox.session
def power(session: nox.Session) -> None:
    """Cut the power at any write, as root: minutes. `nox -s power -- --cuts 25` is short, `--seed 7` repeats a run."""
    install_to_run(session, "tests")
    tools = {"fusermount3": "fuse3", "gcc": "gcc", "mkfs.ext4": "e2fsprogs", "mkfs.xfs": "xfsprogs"}
    headers = {} if Path("/usr/include/fuse3/fuse.h").exists() else {"fuse.h": "libfuse3-dev"}
    install_tools(session, tools | {"pkg-config": "pkg-config"} | headers, "the tests that need it are skipped")
    session.run("pytest", "tests/power", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure: minutes. `nox -s bench -- --only live --output live.json`; `-- --profile live` shows where time goes."""
    install_to_run(session, "bench")
    install_tools(session, {"sshd": "openssh-server"}, "ssh will not be measured")
    session.run("python", "-m", "benchmarks", *session.posargs)


def install_tools(session: nox.Session, packages: dict[str, str], without: str) -> None:
    """Install programs of others where that can be done.

    Args:
        packages: Debian's packages by the programs that are needed of them.
        without: what becomes of it where a program is missing.
    """
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin"))
    missing = sorted({package for tool, package in packages.items() if shutil.which(tool, path=path) is None})
    if not missing:
        return
    names = ", ".join(missing)
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        session.warn(f"only root can install Debian's {names}, which is not there: {without}")
        return
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        session.run("apt-get", "update", external=True, silent=True)
        session.run("apt-get", "install", "--yes", *missing, env=quiet, external=True, silent=True)
    except CommandFailed:
        session.warn(f"Debian's {names} could not be installed: {without}")


@nox.session
def generate(session: nox.Session) -> None:
    """Make generated/worker_api from api.proto; lint says when that is due."""
    install(session, "generate", project=False)
    generate_into(session, GENERATED)


def check_generated(session: nox.Session) -> None:
    """Fail when generated/worker_api is not what api.proto gives."""
    fresh = Path(session.create_tmp()) / "worker_api"
    generate_into(session, fresh)
    if differences := sorted(stale_files(GENERATED, fresh)):
        session.error(f"generated/worker_api is stale, run `nox -s generate`: {', '.join(differences)}")


def stale_files(committed: Path, fresh: Path) -> set[str]:
    """Name the files that differ between two packages."""
    names = {
        str(path.relative_to(root))
        for root in (committed, fresh)
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    same, _, _ = filecmp.cmpfiles(committed, fresh, names, shallow=False)
    return names - set(same)


@nox.session
def pin(session: nox.Session) -> None:
    """Pin every dependency group anew, with hashes, into requirements/."""
    session.install("pip-tools>=7.5", "dependency-groups")
    for group in ("bench", "generate", "lint", "tests", "types"):
        source = Path(session.create_tmp()) / f"{group}.in"
        listed = session.run("python", "-m", "dependency_groups", group, silent=True)
        source.write_text(str(listed))
        session.run(
            *("pip-compile", "--quiet", "--strip-extras", "--generate-hashes", "--allow-unsafe", "--upgrade"),
            *("--no-emit-index-url", "--no-emit-trusted-host", "--no-emit-find-links", "--no-header", "--no-annotate"),
            *("--output-file", f"requirements/{group}.txt", "pyproject.toml", str(source)),
        )
