-- What the program checks, the table checks again: another program may write here one day.
CREATE TABLE orders (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- The second delivery of a message finds the first one here. Null: its publisher gave none.
    message_id      text UNIQUE CHECK (message_id <> ''),
    user_id         text NOT NULL CHECK (char_length(user_id) BETWEEN 1 AND 50),
    number_of_items integer NOT NULL CHECK (number_of_items >= 1),
    -- To PostgreSQL NaN is greater than every number: without the upper bound it would pass.
    total_amount    numeric(12,2) NOT NULL CHECK (total_amount BETWEEN 0 AND 9999999999.99),
    created_at      timestamptz NOT NULL DEFAULT now()
);

-- One user's orders, page by page.
CREATE INDEX orders_user_id ON orders (user_id, id);
