-- Of engines that give no token ids: a JSON array with the texts of the sampled tokens; and the
-- prompt as text, noted later for what is learned from.
ALTER TABLE choices ADD COLUMN token_texts BLOB;
ALTER TABLE completions ADD COLUMN prompt_text BLOB;
