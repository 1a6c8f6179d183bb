// OpenClaw: a message that needs its shell, a rating, and one more message.
// Prints what OpenClaw kept of it as JSON. Knows nothing of strop.
import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";

const [question, rating, next] = process.argv.slice(2);
const { HOME, OPENAI_BASE_URL, OPENAI_API_KEY } = process.env;
const cost = { input: 0, output: 0, cacheRead: 0, cacheWrite: 0 };
const model = {
  ...{ id: "tiny", name: "tiny", reasoning: false, input: ["text"] },
  ...{ contextWindow: 200000, maxTokens: 1000, cost },
};
const local = { baseUrl: OPENAI_BASE_URL, apiKey: OPENAI_API_KEY, api: "openai-completions" };
const folder = join(HOME, ".openclaw");
mkdirSync(folder, { recursive: true });
writeFileSync(
  join(folder, "openclaw.json"),
  JSON.stringify({
    models: { mode: "merge", providers: { local: { ...local, models: [model] } } },
    agents: { defaults: { model: { primary: "local/tiny" } } },
    // To remember, it asks a service for embeddings.
    memory: { search: { enabled: false } },
    // Nobody is there to approve.
    tools: { exec: { mode: "full" } },
  }),
);

function openclaw(message) {
  execFileSync(
    process.execPath,
    [
      join(import.meta.dirname, "node_modules", "openclaw", "openclaw.mjs"),
      ...["agent", "--local", "--agent", "main", "--session-id", "one", "--message", message],
    ],
    { stdio: ["ignore", "ignore", "inherit"] },
  );
}

for (const message of [question, rating, next]) openclaw(message);
const kept = new DatabaseSync(
  join(folder, "agents", "main", "agent", "openclaw-agent.sqlite"),
  { readOnly: true },
);
const answers = kept
  .prepare("SELECT event_json FROM transcript_events ORDER BY seq")
  .all()
  .map((row) => JSON.parse(row.event_json))
  .filter(({ type, message }) => type === "message" && message.role === "assistant")
  .map(({ message: { content, usage } }) => ({
    text: content.filter((part) => part.type === "text").map((part) => part.text).join(""),
    calls: content
      .filter((part) => part.type === "toolCall")
      .map((part) => [part.name, part.arguments]),
    usage: [usage.input, usage.output],
  }));
console.log(JSON.stringify({ answers }));
