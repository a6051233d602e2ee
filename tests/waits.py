"""Finding calls that can wait without a limit for another process, a user, or a service of the machine.

A scan of the source (ast). It knows what waits by its name: it may take something for a wait that is none, and does not
see one inside of a library. Reading and writing files is left out: no call on a file takes a limit, so what may hang
with its disk is called in a thread that is waited for within one (`workerd.engine.threads`). Left out, too, are tasks
that a task group or `asyncio.gather` waits for: their own waits are scanned.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_LOCKS = {"Lock", "RLock", "Condition", "Semaphore", "BoundedSemaphore"}
_TIMED = {"subprocess.run", "subprocess.call", "subprocess.check_call", "subprocess.check_output", "asyncio.wait"}
_REAPING = {"os.wait", "os.wait3", "os.wait4", "os.waitid", "os.waitpid"}
# Of a user's directory, an account's or a host's name: the C library asks services for it (nsswitch.conf(5)).
_SERVICES = {"grp.getgrall", "grp.getgrgid", "grp.getgrnam", "os.getgrouplist", "os.initgroups", "pwd.getpwall"}
_SERVICES |= {"getpass.getuser", "pwd.getpwnam", "pwd.getpwuid", "socket.getaddrinfo", "socket.gethostbyname"}
_ALWAYS = _SERVICES | {"getpass.getpass", "input", "signal.pause", "signal.sigwait", "signal.sigwaitinfo"}
_IN_THREADS = {"run_in_executor", "to_thread"}
_FROM_SOCKETS = {"accept", "recv", "recv_fds", "recv_into", "recvfrom", "recvmsg", "sendall", "send_fds"}
_READING = {"open", "os.read", "os.readv"}


@dataclass(frozen=True)
class Wait:
    """A call that can wait without a limit.

    Attributes:
        where: the file and the function.
        what: is called.
    """

    where: str
    what: str
    line: int = field(compare=False)

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def find_waits(source: str, file: str) -> list[Wait]:
    """Find the calls in one file that can wait without a limit."""
    tree = ast.parse(source)
    scan = _Scan(file, _Names.of(tree))
    scan.visit(tree)
    return scan.found


def find_waits_below(*packages: Path) -> Iterator[Wait]:
    """Find them in all files of packages."""
    for package in packages:
        for path in sorted(package.rglob("*.py")):
            yield from find_waits(path.read_text(), str(path.relative_to(package.parent)))


@dataclass
class _Names:
    """What the names in a file stand for; an attribute and a variable of one name are taken for the same."""

    made: dict[str, str] = field(default_factory=dict)  # by what call
    pipes: set[str] = field(default_factory=set)
    nonblocking: set[str] = field(default_factory=set)
    optional: set[str] = field(default_factory=set)  # what may be None, or return it

    @classmethod
    def of(cls, tree: ast.AST) -> "_Names":
        names = cls()
        for node in ast.walk(tree):
            match node:
                case ast.Assign(targets=[ast.Tuple(elts=ends)], value=ast.Call(func=function)):
                    if ast.unparse(function) == "os.pipe":
                        names.pipes |= {_name(end) for end in ends}
                case (
                    ast.Assign(targets=[target], value=ast.Call(func=function))
                    | ast.AnnAssign(target=target, value=ast.Call(func=function))
                    | ast.withitem(context_expr=ast.Call(func=function), optional_vars=ast.expr() as target)
                ):
                    names.made[_name(target)] = ast.unparse(function)
                case ast.Assign(targets=[target], value=ast.IfExp(body=one, orelse=other)):
                    if any(isinstance(value, ast.Constant) and value.value is None for value in (one, other)):
                        names.optional.add(_name(target))
                case ast.Call(func=ast.Attribute(attr="set_blocking"), args=[target, ast.Constant(value=False)]):
                    names.nonblocking.add(_name(target))
                case ast.Call(func=ast.Attribute(value=target, attr="setblocking" | "settimeout")):
                    names.nonblocking.add(_name(target))
                case ast.arg(arg=name, annotation=ast.expr() as annotation):
                    if "None" in ast.unparse(annotation):
                        names.optional.add(name)
                case (
                    ast.FunctionDef(name=name, returns=ast.expr() as annotation)
                    | ast.AsyncFunctionDef(name=name, returns=ast.expr() as annotation)
                ):
                    if "None" in ast.unparse(annotation):
                        names.optional.add(name.lstrip("_"))
        return names

    def is_made_by(self, node: ast.expr, *kinds: str) -> bool:
        """Return whether a name, or the call itself, stands for what a call of one of these makes."""
        made = ast.unparse(node.func) if isinstance(node, ast.Call) else self.made.get(_name(node), "")
        return made.rpartition(".")[2] in kinds

    def is_limit(self, node: ast.expr | None) -> bool:
        """Return whether an expression is a time, and never None."""
        return node is not None and not any(
            (isinstance(part, ast.Constant) and part.value is None)
            or (isinstance(part, ast.Name | ast.Attribute) and _name(part) in self.optional)
            for part in ast.walk(node)
        )


class _Scan(ast.NodeVisitor):
    def __init__(self, file: str, names: _Names) -> None:
        self.found: list[Wait] = []
        self._file = file
        self._names = names
        self._scopes: list[str] = []
        self._awaited = self._limited = 0  # how many awaits and limits of time there are around

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._visit_scope(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_scope(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._visit_scope(node)

    def _visit_scope(self, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        limited, self._limited = self._limited, 0
        self._scopes.append(node.name)
        self.generic_visit(node)
        self._scopes.pop()
        self._limited = limited

    def visit_With(self, node: ast.With) -> None:
        self._visit_with(node, awaited=0)

    def visit_AsyncWith(self, node: ast.AsyncWith) -> None:
        self._visit_with(node, awaited=1)

    def _visit_with(self, node: ast.With | ast.AsyncWith, *, awaited: int) -> None:
        limits = 0
        for item in node.items:
            context = item.context_expr
            is_lock = _name(context) == "lock" or self._names.is_made_by(context, *_LOCKS, "ThreadPoolExecutor")
            if is_lock and not (awaited and self._limited):
                self._note(context, f"with {ast.unparse(context)}")
            self.visit(context)
            match context:
                case ast.Call(func=ast.Attribute(attr="timeout" | "timeout_at"), args=[limit]):
                    limits = int(self._names.is_limit(limit))
                    self._limited += limits
        for statement in node.body:
            self.visit(statement)
        self._limited -= limits

    def visit_Await(self, node: ast.Await) -> None:
        match node.value:
            case (
                ast.Name()
                | ast.Attribute()
                | ast.Call(func=ast.Attribute(attr="shield"), args=[ast.Name() | ast.Attribute()])
            ):
                if not self._limited:
                    self._note(node, ast.unparse(node))
        self._awaited += 1
        self.generic_visit(node)
        self._awaited -= 1

    def visit_Call(self, node: ast.Call) -> None:
        if self._waits(node) and not (self._awaited and self._limited):
            self._note(node, ast.unparse(node.func))
        match node.func:
            case ast.Attribute(value=ast.Name(id="asyncio"), attr="wait_for"):
                limits = int(self._has_limit(node, 1))
                self._limited += limits
                self.generic_visit(node)
                self._limited -= limits
            case _:
                self.generic_visit(node)

    def _waits(self, node: ast.Call) -> bool:
        names, called = self._names, ast.unparse(node.func)
        receiver = node.func.value if isinstance(node.func, ast.Attribute) else node.func
        first = node.args[0] if node.args else None
        if called in _ALWAYS:
            return True
        if called in _TIMED:
            return not self._has_limit(node)
        if called in _REAPING:
            return "WNOHANG" not in ast.unparse(node)
        if called in _READING:
            return (
                first is not None
                and _name(first) not in names.nonblocking
                and (called != "open" or _name(first) in names.pipes)
            )
        match called, called.rpartition(".")[2]:
            case (("fcntl.flock" | "fcntl.lockf"), _):
                return not {"LOCK_NB", "LOCK_UN"} & {_name(part) for part in ast.walk(node) if _name(part)}
            case "fcntl.fcntl", _:
                return "SETLKW" in ast.unparse(node)
            case "select.select", _:
                return not self._has_limit(node, 3)
            case "sqlite3.connect", _:
                return not self._has_limit(node) and ast.unparse(node.args[0]) != "':memory:'"
            case (("asyncio.wait_for" | "socket.create_connection"), _):
                return not self._has_limit(node, 1)
            case _, "wait":
                return not self._has_limit(node, 0)
            case _, "communicate" | "wait_for":
                return not self._has_limit(node, 1)
            case _, "get" | "join":
                return not node.args and not self._has_limit(node)
            case _, "acquire":
                given = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "blocking")]
                return not any(ast.unparse(each) == "False" for each in given) and not self._has_limit(node, 1)
            case _, "poll":
                return names.is_made_by(receiver, "poll", "epoll") and not self._has_limit(node, 0)
            case _, "result":
                return names.is_made_by(receiver, "submit", "run_coroutine_threadsafe")
            case _, "start":
                return names.is_made_by(receiver, "Thread", "Timer")  # it waits until the thread has begun
            case _, "connect" | "send":
                return names.is_made_by(receiver, "socket") and _name(receiver) not in names.nonblocking
            case _, "readline":
                return True
            case _, method if method in _FROM_SOCKETS:
                known = first if ast.unparse(receiver) == "socket" else receiver
                return known is None or _name(known) not in names.nonblocking
            case _, method:
                return method in _IN_THREADS
        return False

    def _has_limit(self, node: ast.Call, position: int | None = None) -> bool:
        """Return whether a call is given a limit of time, by name or at a position."""
        for keyword in node.keywords:
            if keyword.arg is not None and keyword.arg.startswith("timeout"):
                return self._names.is_limit(keyword.value)
        given = node.args[position] if position is not None and len(node.args) > position else None
        return self._names.is_limit(given)

    def _note(self, node: ast.expr, what: str) -> None:
        self.found.append(Wait(f"{self._file} {'.'.join(self._scopes)}".rstrip(), what, node.lineno))


def _name(node: ast.AST) -> str:
    """Return the last part of a name, without the underscore of what is not public; empty for anything else."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.lstrip("_")
        case _:
            return ""
