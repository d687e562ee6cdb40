"""What rules need to speak TLS, made of the files that they name."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tls import authority, certificate
from veillink.config import credentials as module
from veillink.config.assets import Assets
from veillink.config.contexts import MOST, client_context, server_context
from veillink.config.file_source import read
from veillink.config.rules import Parsed
from veillink.credentials import ClientTls, ServerTls
from veillink.model import RuleOptions


class Folder:
    """A folder with a rules' file and what it names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.assets = Assets()

    def write(self, name: str, content: bytes) -> None:
        """Write a file as programs do that care: whole, with another one's place taken."""
        part = self.path / "part"
        part.write_bytes(content)
        part.chmod(0o600)
        part.rename(self.path / name)

    def pair(self, name: str, *names: str) -> None:
        """Write a certificate with its key."""
        self.write(name, certificate(*names).private_key_and_cert_chain_pem.bytes())

    def read(self, text: str) -> Parsed:
        (self.path / "config.csv").write_text(text)
        return read(str(self.path / "config.csv"), RuleOptions(), self.assets)

    def good(self, text: str) -> list[Any]:
        """Return the rules of a text that has no problem."""
        found = self.read(text)
        assert found.problems == ()
        return list(found.rules.rules)

    def problems(self, text: str) -> list[str]:
        return [problem.at("config.csv") for problem in self.read(text).problems]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    found = Folder(tmp_path)
    found.pair("a.pem", "a.example")
    found.pair("b.pem", "b.example")
    found.write("ca.pem", authority("ours").cert_pem.bytes())
    return found


class Makes:
    """Counts the contexts that are made."""

    def __init__(self) -> None:
        self.count = 0

    def counted(self, make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            return make(*arguments, **named)

        return made


@pytest.fixture
def makes(monkeypatch: pytest.MonkeyPatch) -> Makes:
    found = Makes()
    monkeypatch.setattr(module, "server_context", found.counted(server_context))
    monkeypatch.setattr(module, "client_context", found.counted(client_context))
    return found


def test_a_rule_gets_what_it_shows_to_clients(folder: Folder) -> None:
    (rule,) = folder.good("443,host,80,tls=a.pem b.pem,tls_client_ca=ca.pem,tls_client_names=*.x.example")
    assert isinstance(rule.tls, ServerTls)
    assert [(each.file, each.names) for each in rule.tls.certificates] == [
        ("a.pem", ("a.example",)),
        ("b.pem", ("b.example",)),
    ]
    assert rule.tls.client_names == ("*.x.example",)
    assert len(rule.tls.contexts) == 2


@pytest.mark.parametrize(
    ("host", "port", "options", "name"),
    [
        ("DB.example.", "80", "", "db.example"),
        ("10.0.0.1", "80", "", "10.0.0.1"),
        ("fe80::1%lo", "80", "", "fe80::1"),
        ("unix:/run/x", "", "target_name=a.example", "a.example"),
        ("unix:/run/x", "", "target_tls=insecure", ""),
        ("host", "80", "target_name=Other.example", "other.example"),
    ],
)
def test_a_target_gets_what_it_is_asked_for(folder: Folder, host: str, port: str, options: str, name: str) -> None:
    tls = "" if "target_tls" in options else "target_tls=verify"
    (rule,) = folder.good(f"443,{host},{port},{tls},{options}")
    (target,) = rule.targets
    assert isinstance(target.tls, ClientTls)
    assert target.tls.name == name
    assert target.tls.certificate is None
    assert rule.tls is None


def test_a_target_is_shown_a_certificate(folder: Folder) -> None:
    (rule,) = folder.good("443,host,80,target_tls=verify,target_ca=ca.pem,target_cert=a.pem")
    assert rule.targets[0].tls.certificate.file == "a.pem"


def test_a_rule_without_tls_stays_as_it_is(folder: Folder, makes: Makes) -> None:
    (rule,) = folder.good("443,host,80")
    assert (rule.tls, rule.targets[0].tls, makes.count) == (None, None, 0)


def test_the_files_are_named(folder: Folder) -> None:
    folder.write("key.pem", certificate("a.example").private_key_pem.bytes())
    found = folder.read(
        "443,host,80,tls=a.pem,tls_key=key.pem,tls_client_ca=ca.pem\n444,host,80,target_tls=verify,target_ca=ca.pem"
    )
    assert found.rules.files == ("a.pem", "ca.pem", "key.pem")


def test_what_is_made_of_the_same_is_made_once_and_a_reload_makes_nothing(folder: Folder, makes: Makes) -> None:
    folder.write("same.pem", (folder.path / "a.pem").read_bytes())
    text = "".join(
        f"{port},host{port},80,tls={'a' if port % 2 else 'same'}.pem,target_tls=verify\n" for port in range(1000, 1100)
    )
    one, two, three, *_ = folder.good(text)
    assert makes.count == 2
    assert one.tls is three.tls
    assert one.tls.contexts == two.tls.contexts
    assert one.targets[0].tls.context is two.targets[0].tls.context
    assert one.targets[0].tls != two.targets[0].tls  # another name
    again, *_ = folder.good(text)
    assert makes.count == 2
    assert again == one
    assert again.tls.contexts == one.tls.contexts


@pytest.mark.parametrize(
    "other",
    [
        "tls=b.pem a.pem",
        "tls=a.pem,tls_min=1.3",
        "tls=a.pem,alpn=h2",
        "tls=a.pem,alpn=pass,target_tls=insecure",
        "tls=a.pem,tls_client_ca=ca.pem",
    ],
)
def test_other_settings_make_others(folder: Folder, other: str) -> None:
    one, two = folder.good(f"443,host,80,tls=a.pem\n444,host,80,{other}")
    assert one.tls != two.tls
    assert one.tls.contexts[0] is not two.tls.contexts[0]


def test_other_names_of_clients_are_another_form_of_a_rule_with_the_same_contexts(folder: Folder) -> None:
    cells = "tls=a.pem,tls_client_ca=ca.pem"
    one, two = folder.good(f"443,host,80,{cells}\n444,host,80,{cells},tls_client_names=x.example")
    assert one.tls != two.tls
    assert one.tls.contexts == two.tls.contexts


def test_a_renewed_certificate_is_a_changed_rule(folder: Folder, makes: Makes) -> None:
    text = "443,host,80,tls=a.pem\n444,host,80,tls=b.pem"
    before = folder.read(text).rules
    folder.write("a.pem", authority("ours").issue_cert("a.example").private_key_and_cert_chain_pem.bytes())
    after = folder.read(text).rules
    diff = before.diff(after)
    assert [rule.name for rule in diff.changed] == ["443"]
    assert [rule.name for rule in diff.same] == ["444"]
    assert makes.count == 3


def test_what_was_written_anew_with_the_same_bytes_is_the_same(folder: Folder, makes: Makes) -> None:
    text = "443,host,80,tls=a.pem"
    (before,) = folder.good(text)
    folder.pair("a.pem", "a.example")
    (after,) = folder.good(text)
    assert after == before
    assert makes.count == 1


def test_who_may_read_a_key_is_looked_at_anew(folder: Folder) -> None:
    text = "443,host,80,tls=a.pem"
    (folder.path / "a.pem").chmod(0o644)
    assert folder.good(text)[0].tls.certificates[0].doubts == ("others may read its private key",)
    (folder.path / "a.pem").chmod(0o600)
    assert folder.good(text)[0].tls.certificates[0].doubts == ()


def test_links_are_followed_whatever_of_them_changes(folder: Folder) -> None:
    for which in ("1", "2"):
        (folder.path / which).mkdir()
        leaf = authority("ours").issue_cert(f"{which}.example").private_key_and_cert_chain_pem.bytes()
        (folder.path / which / "tls.pem").write_bytes(leaf)
    (folder.path / "data").symlink_to("1")  # as Kubernetes has it: tls.pem -> ..data/tls.pem, ..data -> 1
    (folder.path / "tls.pem").symlink_to("data/tls.pem")

    def names() -> Any:
        return folder.good("443,host,80,tls=tls.pem")[0].tls.certificates[0].names

    assert names() == ("1.example",)
    (folder.path / "new").symlink_to("2")
    (folder.path / "new").rename(folder.path / "data")
    assert names() == ("2.example",)
    (folder.path / "new").symlink_to("1/tls.pem")  # as certbot has it
    (folder.path / "new").rename(folder.path / "tls.pem")
    assert names() == ("1.example",)


# --- what cannot be made ---


NONE = "none.pem: cannot be read: No such file or directory"
OF_ANOTHER = "b.pem: the private key is of another certificate"


def lock(path: Path) -> None:
    arguments = ["openssl", "pkey", "-in", str(path), "-aes256", "-passout", "pass:word"]
    path.with_name("locked.pem").write_bytes(subprocess.run(arguments, check=True, capture_output=True).stdout)


@pytest.mark.parametrize(
    ("cells", "problems"),
    [
        ("tls=none.pem", [NONE]),
        ("tls=folder", ["folder: cannot be read: it is a directory"]),
        ("tls=fifo", ["fifo: cannot be read: it is no regular file"]),
        ("tls=large.pem", ["large.pem: is larger than 4 MiB"]),
        ("tls=empty.pem", ["empty.pem: holds no certificate"]),
        ("tls=ca.pem", ["ca.pem: holds no private key"]),
        ("tls=a.pem,tls_key=b.pem", [OF_ANOTHER]),
        ("tls=a.pem,tls_key=locked.pem", ["locked.pem: the private key is encrypted"]),
        ("tls=a.pem,tls_client_ca=empty.pem", ["empty.pem: holds no certificate"]),
        ("tls=none.pem empty.pem", ["empty.pem: holds no certificate", NONE]),
        ("target_tls=verify,target_ca=empty.pem", ["empty.pem: holds no certificate"]),
        ("target_tls=insecure,target_cert=a.pem,target_key=b.pem", [OF_ANOTHER]),
        ("target_tls=insecure,target_cert=none.pem", [NONE]),
        ("tls=empty.pem,deny=@none.pem", [NONE, "empty.pem: holds no certificate"]),
    ],
)  # fmt: skip
def test_a_file_that_does_not_work_takes_its_rules_away_and_no_others(
    folder: Folder, cells: str, problems: list[str]
) -> None:
    folder.write("empty.pem", b"")
    folder.write("large.pem", b"#" * (MOST + 1))
    (folder.path / "folder").mkdir()
    os.mkfifo(folder.path / "fifo")
    lock(folder.path / "a.pem")
    text = f"443,host,80,{cells}\n444,host,80,{cells}\n445,host,80,tls=b.pem\n446,host,80"
    assert folder.problems(text) == problems
    assert [rule.name for rule in folder.read(text).rules.rules] == ["445", "446"]


def test_a_bad_file_is_followed_and_mended(folder: Folder) -> None:
    text = "443,host,80,tls=c.pem"
    found = folder.read(text)
    assert found.rules.files == ("c.pem",)
    folder.pair("c.pem", "c.example")
    assert folder.good(text)[0].tls.certificates[0].names == ("c.example",)
    folder.write("c.pem", b"")
    assert folder.problems(text) == ["c.pem: holds no certificate"]


def test_nothing_of_a_key_is_shown(folder: Folder) -> None:
    (rule,) = folder.good("443,host,80,tls=a.pem,target_tls=insecure,target_cert=b.pem")
    for name in ("a.pem", "b.pem"):
        key = (folder.path / name).read_text().split("PRIVATE KEY-----")[1].split()
        assert not any(word in repr(rule) for word in key if len(word) > 20)
