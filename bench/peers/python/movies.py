"""Movies on Flask and SQLAlchemy."""

from flask import Flask, request
from sqlalchemy import BigInteger, Text, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import settings

app = Flask(__name__)
app.json.sort_keys = False
engine = settings.engine(pool_size=8)


class Base(DeclarativeBase):
    pass


class Movie(Base):
    __tablename__ = "movies"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    title: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text)

    def as_dict(self):
        return {"id": self.id, "title": self.title, "description": self.description}


@app.get("/health")
def health():
    return {"status": "ok"}


@app.get("/api/movies")
def list_movies():
    after = request.args.get("after", 0, type=int)
    page = select(Movie).where(Movie.id > after).order_by(Movie.id)
    if limit := request.args.get("limit", type=int):
        page = page.limit(limit)
    with Session(engine) as session:
        return [movie.as_dict() for movie in session.scalars(page)]


@app.get("/api/movies/<int:movie_id>")
def get_movie(movie_id):
    with Session(engine) as session:
        movie = session.get(Movie, movie_id)
        return movie.as_dict() if movie else ({"title": "Not Found"}, 404)


@app.post("/api/movies")
def create_movie():
    fields = request.get_json()
    title, description = fields.get("title"), fields.get("description")
    for text in title, description:
        if not isinstance(text, str) or not text.strip():
            return {"title": "Bad Request"}, 400
    if len(title) > 255:
        return {"title": "Bad Request"}, 400
    # The INSERT returns the id; an object that expires would be selected again.
    with Session(engine, expire_on_commit=False) as session:
        movie = Movie(title=title, description=description)
        session.add(movie)
        session.commit()
        return movie.as_dict(), 201
