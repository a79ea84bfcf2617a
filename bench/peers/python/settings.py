"""The addresses of the servers, for all peers in Python."""

import os

import pika
import sqlalchemy

QUEUE = os.environ["RABBITMQ_QUEUE"]


def engine(pool_size):
    url = sqlalchemy.URL.create(
        "postgresql+psycopg",
        username=os.environ["POSTGRES_USER"],
        password=os.environ["POSTGRES_PASSWORD"],
        host=os.environ["POSTGRES_HOST"],
        port=int(os.environ["POSTGRES_PORT"]),
        database=os.environ["POSTGRES_DB"],
    )
    # Statements are prepared at their first use, as the other candidates do it.
    return sqlalchemy.create_engine(
        url, pool_size=pool_size, max_overflow=0, connect_args={"prepare_threshold": 0}
    )


def broker():
    return pika.BlockingConnection(
        pika.ConnectionParameters(
            host=os.environ["RABBITMQ_HOST"],
            port=int(os.environ["RABBITMQ_PORT"]),
            credentials=pika.PlainCredentials(
                os.environ["RABBITMQ_USER"], os.environ["RABBITMQ_PASSWORD"]
            ),
        )
    )
