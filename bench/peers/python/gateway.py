"""A gateway on Flask: movies with requests, orders with pika, each order over a connection of its own."""

import os
import threading
import time
import uuid

import pika
import requests
from flask import Flask, Response, request

import settings

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"}

app = Flask(__name__)
upstream = f"http://127.0.0.1:{os.environ['UPSTREAM_PORT']}"
own = threading.local()


def session():
    """The session of this thread, which keeps its connection open."""
    if not hasattr(own, "session"):
        own.session = requests.Session()
        own.session.trust_env = False
    return own.session


@app.route("/api/movies", methods=["GET", "POST", "DELETE"], defaults={"rest": ""})
@app.route("/api/movies/<path:rest>", methods=["GET", "PUT", "DELETE"])
def movies(rest):
    answer = session().request(
        request.method,
        upstream + request.full_path.rstrip("?"),
        data=request.get_data(),
        headers={
            name: value
            for name, value in request.headers.items()
            if name.lower() not in HOP_BY_HOP | {"host"}
        },
        timeout=10,
    )
    headers = [
        (name, value)
        for name, value in answer.headers.items()
        if name.lower() not in HOP_BY_HOP | {"content-length"}
    ]
    return Response(answer.content, answer.status_code, headers)


@app.post("/api/billing")
def place_order():
    body = request.get_data()
    fields = request.get_json()
    if not all(name in fields for name in ("user_id", "number_of_items", "total_amount")):
        return {"title": "Bad Request"}, 400
    message_id = str(uuid.uuid4())
    link = settings.broker()
    try:
        channel = link.channel()
        channel.confirm_delivery()
        # The call returns when the broker has confirmed the message, and raises if it does not.
        channel.basic_publish(
            "",
            settings.QUEUE,
            body,
            pika.BasicProperties(
                content_type="application/json",
                delivery_mode=2,
                message_id=message_id,
                timestamp=int(time.time()),
            ),
            mandatory=True,
        )
    finally:
        link.close()
    return {"message": "Message posted", "message_id": message_id}
