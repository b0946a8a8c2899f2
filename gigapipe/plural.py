"""Numbers of things in messages: 1 slide, 2 slides."""


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
