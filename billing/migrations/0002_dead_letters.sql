-- Messages that can never be recorded, until an operator decides what becomes of them.
CREATE TABLE dead_letters (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- Text cannot hold NUL: in the columns of this table U+FFFD stands for it, and properties have \u0000.
    message_id  text,
    request_id  text,
    -- The word that the metrics have, and the reason in full.
    reason      text NOT NULL,
    detail      text NOT NULL,
    exchange    text NOT NULL,
    routing_key text NOT NULL,
    -- Each header with its AMQP type. A jsonb cannot hold \u0000.
    properties  json NOT NULL,
    body        bytea NOT NULL,
    -- How long the body was; of a longer one only the start is kept.
    body_bytes  bigint NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now()
);

-- Uncompressed, so that the start of a long body is read without the rest.
ALTER TABLE dead_letters ALTER COLUMN body SET STORAGE EXTERNAL;

-- A message that is delivered again, because its commit was not followed by the acknowledgement, is
-- found here. A message without an id is nobody's repeat, as among the orders.
CREATE UNIQUE INDEX dead_letters_once ON dead_letters (message_id, sha256(body), body_bytes)
    WHERE message_id IS NOT NULL;

-- The dead letters of one reason, page by page.
CREATE INDEX dead_letters_reason ON dead_letters (reason, id);
