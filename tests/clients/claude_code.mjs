// Claude Code: a prompt that needs its shell, a rating, and one more prompt.
// Prints what Claude Code told as JSON. Knows nothing of strop but how it is rated there.
import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const [question, rating, next] = process.argv.slice(2);
const { HOME, OPENAI_BASE_URL, OPENAI_API_KEY } = process.env;

// It answers a command that it does not know by itself.
const folder = join(HOME, ".claude", "commands");
mkdirSync(folder, { recursive: true });
const head = "---\ndescription: Rate the answer above\ndisable-model-invocation: true\n---\n";
writeFileSync(join(folder, "rl.md"), `${head}/rl $ARGUMENTS\n`);

function claude(...options) {
  const printed = execFileSync(
    join(import.meta.dirname, "node_modules", ".bin", "claude"),
    [
      ...["-p", "--model", "tiny", "--output-format", "stream-json", "--verbose"],
      ...["--allowedTools", "Bash", ...options],
    ],
    {
      env: {
        ...process.env,
        ANTHROPIC_BASE_URL: OPENAI_BASE_URL.replace(/\/v1$/, ""),
        ANTHROPIC_API_KEY: OPENAI_API_KEY,
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: "1",
      },
      encoding: "utf-8",
      stdio: ["ignore", "pipe", "inherit"],
      maxBuffer: 2 ** 26,
    },
  );
  return printed.trim().split("\n").map((line) => JSON.parse(line));
}

const events = [
  ...claude("--", question),
  ...claude("-c", "--", rating),
  ...claude("-c", "--", next),
];
// Each block of an answer is told by itself.
const answers = new Map();
for (const { type, message } of events) {
  if (type !== "assistant") continue;
  const answer = answers.get(message.id) ?? { text: "", calls: [], usage: null };
  answers.set(message.id, answer);
  for (const block of message.content) {
    if (block.type === "text") answer.text += block.text;
    else if (block.type === "tool_use") answer.calls.push([block.name, block.input]);
  }
}
console.log(JSON.stringify({ answers: [...answers.values()] }));
