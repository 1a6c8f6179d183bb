-- What lets a store of a million completions answer as fast as one of a thousand. docs/schema.md
-- explains every column.

CREATE INDEX completions_key ON completions (key_id, created_ms);
CREATE INDEX completions_model ON completions (model, created_ms);

-- What lists and counts ask of each rating stands in its own row.
ALTER TABLE feedback ADD COLUMN sign INTEGER NOT NULL DEFAULT 0 CHECK (sign IN (-1, 0, 1));
ALTER TABLE feedback ADD COLUMN latest_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE feedback ADD COLUMN completion_ms INTEGER;
ALTER TABLE feedback ADD COLUMN completion_num INTEGER;
ALTER TABLE feedback ADD COLUMN learned INTEGER NOT NULL DEFAULT 0 CHECK (learned IN (0, 1));

UPDATE feedback SET
    sign = (
        SELECT (r.rating > 0) - (r.rating < 0) FROM feedback_revisions AS r
        WHERE r.feedback = feedback.id AND r.revision = feedback.revision
    ),
    learned = EXISTS (
        SELECT 1 FROM version_feedback AS l
        WHERE l.feedback = feedback.id AND l.revision = feedback.revision
    );
UPDATE feedback SET latest_ms = so_far.latest_ms
FROM (SELECT num, max(created_ms) OVER (ORDER BY num) AS latest_ms FROM feedback) AS so_far
WHERE so_far.num = feedback.num;
UPDATE feedback SET completion_ms = c.created_ms, completion_num = c.num
FROM completions AS c WHERE c.id = feedback.completion AND feedback.state <> 'pending';

CREATE INDEX feedback_key ON feedback (key_id);
CREATE INDEX feedback_rater ON feedback (rater);
CREATE INDEX feedback_sign ON feedback (sign);
CREATE INDEX feedback_fallen ON feedback (state) WHERE state <> 'standing';
CREATE INDEX feedback_latest ON feedback (latest_ms);
CREATE INDEX feedback_rated ON feedback (completion_ms, completion_num) WHERE state = 'standing';
-- For exports, which go by the completion's id.
CREATE INDEX feedback_of_key ON feedback (key_id, completion) WHERE state = 'standing';
CREATE INDEX feedback_of_rater ON feedback (rater, completion) WHERE state = 'standing';
CREATE INDEX feedback_liked ON feedback (base, completion_ms)
WHERE state = 'standing' AND base IS NOT NULL;
DROP INDEX feedback_lessons;
CREATE INDEX feedback_lessons ON feedback (base, held_out, learned, id, revision)
WHERE state = 'standing' AND base IS NOT NULL;

-- How many ratings stand, by their sign.
CREATE TABLE rating_counts (
    sign INTEGER PRIMARY KEY,
    num INTEGER NOT NULL
) STRICT;

INSERT INTO rating_counts (sign, num)
SELECT s.column1, (
    SELECT count(*) FROM feedback AS f WHERE f.sign = s.column1 AND f.state = 'standing'
) FROM (VALUES (-1), (0), (1)) AS s;

CREATE TRIGGER feedback_counted AFTER INSERT ON feedback WHEN NEW.state = 'standing' BEGIN
    UPDATE rating_counts SET num = num + 1 WHERE sign = NEW.sign;
END;
CREATE TRIGGER feedback_recounted AFTER UPDATE OF state, sign ON feedback BEGIN
    UPDATE rating_counts SET num = num - 1 WHERE sign = OLD.sign AND OLD.state = 'standing';
    UPDATE rating_counts SET num = num + 1 WHERE sign = NEW.sign AND NEW.state = 'standing';
END;
CREATE TRIGGER feedback_uncounted AFTER DELETE ON feedback WHEN OLD.state = 'standing' BEGIN
    UPDATE rating_counts SET num = num - 1 WHERE sign = OLD.sign;
END;

-- Whether any version has learned a rating as its current revision says.
CREATE TRIGGER version_feedback_learned AFTER INSERT ON version_feedback BEGIN
    UPDATE feedback SET learned = 1 WHERE id = NEW.feedback AND revision = NEW.revision;
END;
CREATE TRIGGER version_feedback_relearned AFTER UPDATE OF revision ON version_feedback BEGIN
    UPDATE feedback SET learned = EXISTS (
        SELECT 1 FROM version_feedback AS l
        WHERE l.feedback = feedback.id AND l.revision = feedback.revision
    ) WHERE id = NEW.feedback;
END;
CREATE TRIGGER feedback_unlearned AFTER UPDATE OF revision ON feedback BEGIN
    UPDATE feedback SET learned = EXISTS (
        SELECT 1 FROM version_feedback AS l
        WHERE l.feedback = feedback.id AND l.revision = feedback.revision
    ) WHERE id = NEW.id;
END;
