-- Of engines that give the texts of tokens, and no ids: a JSON array of strings.
ALTER TABLE choices ADD COLUMN token_texts BLOB;
