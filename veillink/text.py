"""Escape text for people: whatever it holds, it is one printable line."""


def printable(text: str) -> str:
    """Return the text, or with whatever does not print escaped."""
    return text if text.isprintable() else ascii(text)


def quoted(text: str) -> str:
    """Return what is quoted from a file as one short printable line, whatever it holds."""
    start = text[:40].encode("unicode_escape").decode().replace('"', '\\"')
    return f'"{start}..."' if len(text) > 40 else f'"{start}"'
