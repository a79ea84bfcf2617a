"""What schemathesis makes of the description and cannot know."""

import schemathesis


@schemathesis.hook
def map_body(context, body):
    """10.0 is an integer to JSON Schema, and is none to an order, where digits count as written."""
    if context.operation.path == "/api/billing" and isinstance(body, dict):
        items = body.get("number_of_items")
        if isinstance(items, float) and items.is_integer():
            return {**body, "number_of_items": int(items)}
    return body


@schemathesis.hook
def before_call(context, case, kwargs):
    """A header that schemathesis has seen in one answer, and read as a number, goes out as text."""
    for name, value in case.headers.items():
        case.headers[name] = str(value)
