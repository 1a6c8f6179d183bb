-- Adapter versions, what they learned from, and the runs that made them. docs/schema.md explains
-- every column.

-- The identity of the base that answered; NULL where it was not known.
ALTER TABLE completions ADD COLUMN base TEXT;

-- What the trigger and the trainer ask of each rating stands in its own row: a completion's base
-- lies behind its request, and a session's first completion is another row.
ALTER TABLE feedback ADD COLUMN base TEXT;
ALTER TABLE feedback ADD COLUMN root TEXT;
ALTER TABLE feedback ADD COLUMN held_out INTEGER NOT NULL DEFAULT 0 CHECK (held_out IN (0, 1));

CREATE INDEX feedback_lessons ON feedback (base, held_out, id, revision)
WHERE state = 'standing' AND base IS NOT NULL;

-- Rows are never deleted: descendants have learned what their ancestors did, and the number of a
-- version that was removed must not be given again.
CREATE TABLE versions (
    num INTEGER PRIMARY KEY,
    created_ms INTEGER NOT NULL,
    parent INTEGER REFERENCES versions (num),
    base TEXT NOT NULL,
    run TEXT REFERENCES runs (id),
    origin TEXT NOT NULL CHECK (origin IN ('run', 'import')),
    state TEXT NOT NULL CHECK (
        state IN ('candidate', 'ready', 'active', 'retired', 'rejected', 'missing')
    ),
    stale TEXT,
    pinned INTEGER NOT NULL DEFAULT 0 CHECK (pinned IN (0, 1)),
    removed_ms INTEGER,
    reason TEXT,
    manifest TEXT NOT NULL DEFAULT '{}'
) STRICT;

CREATE UNIQUE INDEX versions_active ON versions (state) WHERE state = 'active';
CREATE INDEX versions_parent ON versions (parent) WHERE parent IS NOT NULL;

-- What each version learned from itself; what its ancestors did, it has from them.
CREATE TABLE version_feedback (
    feedback TEXT NOT NULL REFERENCES feedback (id),
    version INTEGER NOT NULL REFERENCES versions (num),
    revision INTEGER NOT NULL,
    PRIMARY KEY (feedback, version)
) STRICT, WITHOUT ROWID;

CREATE INDEX version_feedback_version ON version_feedback (version);

CREATE TABLE version_events (
    num INTEGER PRIMARY KEY,
    created_ms INTEGER NOT NULL,
    version INTEGER REFERENCES versions (num),
    kind TEXT NOT NULL,
    actor TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;

CREATE INDEX version_events_version ON version_events (version, num);

-- The newest row says which version is active. Each lies on the one that a rollback goes back to.
CREATE TABLE activations (
    num INTEGER PRIMARY KEY,
    created_ms INTEGER NOT NULL,
    version INTEGER REFERENCES versions (num),
    below INTEGER REFERENCES activations (num),
    actor TEXT NOT NULL
) STRICT;

CREATE INDEX activations_version ON activations (version) WHERE version IS NOT NULL;

INSERT INTO activations (num, created_ms, version, below, actor) VALUES (1, 0, NULL, NULL, 'start');

CREATE TABLE pairings (
    engine TEXT PRIMARY KEY,
    engine_digest TEXT NOT NULL,
    base TEXT NOT NULL,
    error REAL NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE runs (
    num INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    created_ms INTEGER NOT NULL,
    started_ms INTEGER,
    finished_ms INTEGER,
    state TEXT NOT NULL CHECK (
        state IN ('queued', 'running', 'gating', 'passed', 'rejected', 'failed', 'cancelled')
    ),
    objective TEXT NOT NULL,
    preset TEXT NOT NULL,
    parent INTEGER REFERENCES versions (num),
    base TEXT NOT NULL,
    requested_by TEXT NOT NULL,
    version INTEGER REFERENCES versions (num),
    step INTEGER NOT NULL DEFAULT 0,
    num_steps INTEGER NOT NULL DEFAULT 0,
    eta_s REAL,
    counts TEXT NOT NULL DEFAULT '{}',
    metrics TEXT NOT NULL DEFAULT '{}',
    reasons TEXT NOT NULL DEFAULT '[]',
    config TEXT NOT NULL DEFAULT '{}',
    cancelling INTEGER NOT NULL DEFAULT 0 CHECK (cancelling IN (0, 1))
) STRICT;

CREATE INDEX runs_unfinished ON runs (num) WHERE state IN ('queued', 'running', 'gating');

CREATE TABLE run_steps (
    run TEXT NOT NULL REFERENCES runs (id),
    step INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    metrics TEXT NOT NULL,
    PRIMARY KEY (run, step)
) STRICT, WITHOUT ROWID;
