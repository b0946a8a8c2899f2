"""Numbers of things in messages: 1 slide, 2 slides."""


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
