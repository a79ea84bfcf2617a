"""Records orders with pika and SQLAlchemy, one by one: insert, commit, acknowledge."""

import json
from decimal import Decimal

from sqlalchemy import BigInteger, Integer, Numeric, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import settings

engine = settings.engine(pool_size=1)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    message_id: Mapped[str] = mapped_column(Text)
    user_id: Mapped[str] = mapped_column(Text)
    number_of_items: Mapped[int] = mapped_column(Integer)
    total_amount: Mapped[Decimal] = mapped_column(Numeric)


def record(channel, method, properties, body):
    fields = json.loads(body)
    with Session(engine, expire_on_commit=False) as session:
        session.add(
            Order(
                message_id=properties.message_id,
                user_id=str(fields["user_id"]),
                number_of_items=int(fields["number_of_items"]),
                total_amount=Decimal(fields["total_amount"]),
            )
        )
        session.commit()
    channel.basic_ack(method.delivery_tag)


channel = settings.broker().channel()
channel.basic_qos(prefetch_count=100)
channel.basic_consume(settings.QUEUE, record)
channel.start_consuming()
