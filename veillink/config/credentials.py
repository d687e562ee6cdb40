"""Make what rules need to speak TLS of the files that they name, and make it once.

Rule: what is made of the same settings and bytes is one: 9,000 rules with one certificate share its context, and a
reload without a change makes none.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final, NamedTuple

from veillink.config.contexts import MOST, ContextError, client_context, server_context
from veillink.config.files import Signature, anybody_may_read, read_regular
from veillink.config.rows import Problem
from veillink.credentials import PASS, Certificate, ClientTls, ServerTls, TargetTls
from veillink.model import Address, Rule, RuleOptions, Target


class _File(NamedTuple):
    """A file as it was read: ``seen`` was at its path just before."""

    seen: Signature
    digest: bytes


_NO_FILE: Final = _File(None, b"")


class _Wanted(NamedTuple):
    """What a context has to be made of; files by their names."""

    serves: bool
    certificate: str
    key: str
    ca: str
    verify: bool
    minimum: str
    # What a target is offered is set in its context with each connection, where the rule has protocols: rules without
    # them must not share that.
    alpn: tuple[str, ...]

    def make(self, certificate: str, key: str, ca: str) -> tuple[Any, Certificate | None]:
        """Make it of the files at these paths."""
        if self.serves:
            offered = () if self.alpn == PASS else self.alpn
            return server_context(certificate, key, minimum=self.minimum, alpn=offered, client_ca=ca)
        return client_context(verify=self.verify, ca=ca, certificate=certificate, key=key, minimum=self.minimum)


class _Made(NamedTuple):
    """A context, and what it was made of."""

    digest: bytes
    context: Any
    certificate: Certificate | None


def names_in(rule: Rule) -> Iterator[str]:
    """Yield the names of the files that a rule's TLS is made of."""
    options = rule.options
    yield from (*options.tls, *options.tls_key, options.tls_client_ca)
    for target in rule.targets:
        yield from (target.target_ca, target.target_cert, target.target_key)


class Credentials:
    """The contexts of all rules, made of files as these were read last."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}
        self._contexts: dict[bytes, _Made] = {}

    def fill(
        self, rules: Iterable[Rule], folder: Path, seen: Mapping[str, Signature]
    ) -> tuple[list[Rule], tuple[Problem, ...]]:
        """Return the rules that can speak as they should, with what they need for it, and what is wrong with files.

        Args:
            rules: as the rules' file says it.
            folder: where that is; names are relative to it.
            seen: what is at the path of each file.
        """
        making = _Making(folder, seen, self._files, self._contexts)
        filled = [new for rule in rules if (new := making.filled(rule)) is not None]
        self._files, self._contexts = making.files, making.contexts
        return filled, tuple(sorted(making.problems.values(), key=lambda problem: problem.file))


@dataclass(slots=True, eq=False)
class _Making:
    """One time that all of it is made, or found among what there was."""

    folder: Path
    seen: Mapping[str, Signature]
    old_files: dict[str, _File]
    old_contexts: dict[bytes, _Made]
    files: dict[str, _File] = field(default_factory=dict)
    contexts: dict[bytes, _Made] = field(default_factory=dict)
    problems: dict[str, Problem] = field(default_factory=dict)  # by file: each is named once
    servers: dict[tuple[object, ...], ServerTls | None] = field(default_factory=dict)
    made: dict[_Wanted, _Made | None] = field(default_factory=dict)

    def filled(self, rule: Rule) -> Rule | None:
        """Return a rule with what it needs, or nothing where some of that cannot be made."""
        good = True
        tls, targets = rule.tls, rule.targets
        if rule.options.tls:
            tls = self._server(rule.options)
            good = tls is not None
        if any(target.target_tls is not TargetTls.OFF for target in targets):
            targets = tuple(self._target(target, rule.options) for target in targets)
            good = good and all(target.tls or target.target_tls is TargetTls.OFF for target in targets)
        if not good:
            return None
        return rule if tls is rule.tls and targets is rule.targets else replace(rule, tls=tls, targets=targets)

    def _server(self, options: RuleOptions) -> ServerTls | None:
        settings = (
            options.tls, options.tls_key, options.tls_client_ca, options.tls_client_names, options.tls_min, options.alpn
        )  # fmt: skip
        if settings not in self.servers:
            pairs = zip_longest(options.tls, options.tls_key, fillvalue="")
            rest = (options.tls_client_ca, True, options.tls_min, options.alpn)
            found = [self._context(_Wanted(True, certificate, key, *rest)) for certificate, key in pairs]
            made = [each for each in found if each is not None]
            self.servers[settings] = None if len(made) < len(found) else ServerTls(
                _digest(options.tls_client_names, *(each.digest for each in made)),
                tuple(each.certificate for each in made if each.certificate),
                options.tls_client_names,
                tuple(each.context for each in made),
            )  # fmt: skip
        return self.servers[settings]

    def _target(self, target: Target, options: RuleOptions) -> Target:
        if target.target_tls is TargetTls.OFF:
            return target
        verify = target.target_tls is TargetTls.VERIFY
        own = (target.target_cert, target.target_key, target.target_ca)
        made = self._context(_Wanted(False, *own, verify, options.tls_min, options.alpn))
        if made is None:
            return target
        name = target.target_name or _name_of(target.address)
        return replace(target, tls=ClientTls(made.digest, name, made.certificate, made.context))

    def _context(self, wanted: _Wanted) -> _Made | None:
        """Return a context as it is wanted, made now or before, or nothing where it cannot be made."""
        if wanted not in self.made:
            self.made[wanted] = self._found_or_made(wanted)
        return self.made[wanted]

    def _found_or_made(self, wanted: _Wanted) -> _Made | None:
        names = (wanted.certificate, wanted.key, wanted.ca)
        paths = [str(self.folder / name) if name else "" for name in names]
        files = [self._file(name, path) if name else _NO_FILE for name, path in zip(names, paths, strict=True)]
        if None in files:
            return None
        readable = anybody_may_read(paths[1] or paths[0])  # that is told of a certificate, too
        settings = wanted._replace(certificate="", key="", ca="")
        digest = _digest(settings, readable, *(file.digest for file in files if file))
        found = self.contexts.get(digest) or self.old_contexts.get(digest)
        if found is None:
            try:
                found = _Made(digest, *wanted.make(*paths))
            except ContextError as error:
                name = dict(zip(paths, names, strict=True))[error.path]
                self.problems.setdefault(name, Problem(0, 0, error.why, name))
                return None
        self.contexts[digest] = found
        return found._replace(certificate=found.certificate and replace(found.certificate, file=wanted.certificate))

    def _file(self, name: str, path: str) -> _File | None:
        """Return a file as it is now, read anew only if it has been written since."""
        if name in self.files or name in self.problems:
            return self.files.get(name)
        known, seen = self.old_files.get(name), self.seen[name]
        if known is None or seen is None or known.seen != seen:
            try:
                data = read_regular(path, MOST + 1)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                self.problems[name] = Problem(0, 0, f"cannot be read: {reason}", name)
                return None
            if len(data) > MOST:
                self.problems[name] = Problem(0, 0, f"is larger than {MOST >> 20} MiB", name)
                return None
            known = _File(seen, sha256(data).digest())
        self.files[name] = known
        return known


def _digest(*parts: object) -> bytes:
    return sha256(repr(parts).encode()).digest()


def _name_of(address: Address) -> str:
    """Return what a target is called in certificates: without a dot at the end, and without a zone."""
    return "" if address.is_unix else address.host.removesuffix(".").partition("%")[0]
