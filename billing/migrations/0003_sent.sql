-- The fields as they were sent, in one text. A trigger or another type of a column may have changed them
-- in the others, and the repeat of a message is not to be taken for another order. Null: the order did not
-- come from the queue, or an older version recorded it.
ALTER TABLE orders ADD COLUMN sent text;
