"""Parts that break a law: a right class with other methods, or with methods whose results are changed."""

from collections.abc import Callable


def but(right: type, **attributes: object) -> type:
    """A subclass with these methods and attributes."""
    return type(f"Broken{right.__name__}", (right,), attributes)


def returning(right: type, **changes: Callable) -> type:
    """A subclass whose methods return what a function makes of their results: {method: function of the results}."""

    def changed(name: str, change: Callable) -> Callable:
        def method(self, *args, **kwargs):
            found = getattr(right, name)(self, *args, **kwargs)
            return change(*found) if isinstance(found, tuple) else change(found)

        return method

    return but(right, **{name: changed(name, change) for name, change in changes.items()})
