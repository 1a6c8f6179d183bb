-- Completions, their choices, and the feedback on them. docs/schema.md explains every column.

CREATE TABLE completions (
    num INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    created_ms INTEGER NOT NULL,
    key_id TEXT NOT NULL,
    dialect TEXT NOT NULL CHECK (dialect IN ('chat', 'completions')),
    engine TEXT NOT NULL,
    model TEXT NOT NULL,
    served TEXT NOT NULL,
    version TEXT NOT NULL,
    -- Not IN: for more than two words SQLite makes a table of them, each time.
    state TEXT NOT NULL CHECK (
        state = 'complete' OR state = 'client_cancelled' OR state = 'upstream_error'
        OR state = 'upstream_timeout' OR state = 'shutdown'
    ),
    delivered INTEGER NOT NULL CHECK (delivered IN (0, 1)),
    stream INTEGER NOT NULL CHECK (stream IN (0, 1)),
    status INTEGER,
    error TEXT,
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    ttft_ms REAL,
    total_ms REAL NOT NULL,
    overhead_ms REAL NOT NULL,
    upstream_id TEXT,
    request_id TEXT,
    starts_turn INTEGER NOT NULL CHECK (starts_turn IN (0, 1)),
    session TEXT NOT NULL,
    session_by TEXT NOT NULL CHECK (
        session_by = 'new' OR session_by = 'parent' OR session_by = 'client'
    ),
    turn TEXT NOT NULL,
    parent TEXT,
    parent_choice INTEGER,
    parent_by TEXT CHECK (
        parent_by = 'chain' OR parent_by = 'chain_ambiguous' OR parent_by = 'tail'
    ),
    after BLOB,
    after_tail BLOB,
    sampling TEXT NOT NULL,
    -- Large values stand last: reading a row's head doesn't touch their pages.
    prompt_ids BLOB,
    request BLOB NOT NULL
) STRICT;

CREATE INDEX completions_created ON completions (created_ms);
CREATE INDEX completions_session ON completions (session, created_ms);
CREATE INDEX completions_unfinished ON completions (state, created_ms) WHERE state <> 'complete';
CREATE INDEX completions_alias ON completions (upstream_id, key_id) WHERE upstream_id IS NOT NULL;

CREATE TABLE choices (
    num INTEGER PRIMARY KEY,
    completion TEXT NOT NULL REFERENCES completions (id) ON DELETE CASCADE,
    choice INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    finish_reason TEXT,
    num_tokens INTEGER,
    logprobs_source TEXT CHECK (logprobs_source IN ('engine')),
    logprobs_kind TEXT CHECK (logprobs_kind IN ('raw', 'processed')),
    chain BLOB,
    tail BLOB,
    token_ids BLOB,
    logprobs BLOB,
    message BLOB NOT NULL,
    UNIQUE (completion, choice)
) STRICT;

CREATE INDEX choices_chain ON choices (chain) WHERE chain IS NOT NULL;
CREATE INDEX choices_tail ON choices (tail, created_ms) WHERE tail IS NOT NULL;

-- No foreign key to completions: a pending rating waits for one that isn't there yet.
CREATE TABLE feedback (
    num INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    created_ms INTEGER NOT NULL,
    completion TEXT NOT NULL,
    choice INTEGER NOT NULL,
    session TEXT,
    key_id TEXT NOT NULL,
    rater TEXT NOT NULL,
    source TEXT NOT NULL CHECK (source IN ('api', 'header', 'inline', 'cli')),
    state TEXT NOT NULL CHECK (state IN ('standing', 'superseded', 'withdrawn', 'pending')),
    note TEXT,
    revision INTEGER NOT NULL,
    idempotency TEXT,
    digest BLOB NOT NULL
) STRICT;

CREATE INDEX feedback_completion ON feedback (completion);
CREATE INDEX feedback_session ON feedback (session) WHERE session IS NOT NULL;
-- None on state alone: the planner would take it for more selective than it is.
CREATE INDEX feedback_pending ON feedback (completion) WHERE state = 'pending';
CREATE UNIQUE INDEX feedback_standing ON feedback (completion, choice, rater, key_id)
WHERE state = 'standing';
CREATE UNIQUE INDEX feedback_idempotency ON feedback (key_id, idempotency)
WHERE idempotency IS NOT NULL;

CREATE TABLE feedback_revisions (
    feedback TEXT NOT NULL REFERENCES feedback (id) ON DELETE CASCADE,
    revision INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    rating REAL NOT NULL CHECK (rating BETWEEN -1 AND 1),
    original TEXT NOT NULL,
    comment TEXT,
    correction TEXT,
    tags TEXT NOT NULL,
    scope TEXT NOT NULL CHECK (scope IN ('completion', 'turn')),
    PRIMARY KEY (feedback, revision)
) STRICT;

-- Written to find out whether a store that failed can be written again; empty otherwise.
CREATE TABLE write_probe (
    num INTEGER PRIMARY KEY,
    payload BLOB NOT NULL
) STRICT;
