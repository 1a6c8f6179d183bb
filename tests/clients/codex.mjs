// The coding agent Codex: a prompt that needs its shell, a rating, and one more prompt.
// Prints what Codex wrote down as JSON. Knows nothing of strop.
import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const [question, rating, next] = process.argv.slice(2);
const { HOME, OPENAI_BASE_URL } = process.env;
const folder = join(HOME, ".codex");
mkdirSync(folder, { recursive: true });
writeFileSync(
  join(folder, "config.toml"),
  `
model = "tiny"
model_provider = "local"
approval_policy = "never"
sandbox_mode = "danger-full-access"
check_for_update_on_startup = false
[analytics]
enabled = false
[model_providers.local]
name = "Local"
base_url = "${OPENAI_BASE_URL}"
env_key = "OPENAI_API_KEY"
wire_api = "responses"
`,
);

function codex(...args) {
  const printed = execFileSync(
    join(import.meta.dirname, "node_modules", ".bin", "codex"),
    ["exec", ...args, "--skip-git-repo-check", "--json"],
    { encoding: "utf-8", stdio: ["ignore", "pipe", "inherit"] },
  );
  return JSON.parse(printed.split("\n")[0]).thread_id;
}

const thread = codex(question);
for (const prompt of [rating, next]) codex("resume", thread, prompt);

// What it prints has neither the calls' names nor what each answer cost; what it keeps has.
const sessions = join(folder, "sessions");
const [kept] = readdirSync(sessions, { recursive: true }).filter((path) => path.endsWith(".jsonl"));
const answers = [];
for (const line of readFileSync(join(sessions, kept), "utf-8").trim().split("\n")) {
  const { type, payload } = JSON.parse(line);
  if (type === "response_item" && payload.type === "function_call") {
    answers.push({ text: "", calls: [[payload.name, JSON.parse(payload.arguments)]], usage: null });
  } else if (type === "response_item" && payload.role === "assistant") {
    const text = payload.content.map((part) => part.text).join("");
    answers.push({ text, calls: [], usage: null });
  } else if (payload.type === "token_count" && payload.info && answers.length) {
    const { input_tokens, output_tokens } = payload.info.last_token_usage;
    answers.at(-1).usage = [input_tokens, output_tokens];
  }
}
console.log(JSON.stringify({ answers }));
