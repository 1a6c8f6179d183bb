// The coding agent pi: a prompt that needs its shell, a rating, and one more prompt.
// Prints what pi told as JSON. Knows nothing of strop.
import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const [question, rating, next] = process.argv.slice(2);
const { HOME, OPENAI_BASE_URL, OPENAI_API_KEY } = process.env;
const cost = { input: 0, output: 0, cacheRead: 0, cacheWrite: 0 };
const model = {
  ...{ id: "tiny", name: "tiny", reasoning: false, input: ["text"] },
  ...{ contextWindow: 32000, maxTokens: 1000, cost },
};
const local = { baseUrl: OPENAI_BASE_URL, apiKey: OPENAI_API_KEY, api: "openai-completions" };
const folder = join(HOME, ".pi", "agent");
mkdirSync(folder, { recursive: true });
writeFileSync(
  join(folder, "models.json"),
  JSON.stringify({ providers: { local: { ...local, models: [model] } } }),
);

function pi(...options) {
  const printed = execFileSync(
    join(import.meta.dirname, "node_modules", ".bin", "pi"),
    ["-p", "--mode", "json", "--provider", "local", "--model", "tiny", ...options],
    {
      env: { ...process.env, PI_OFFLINE: "1" },
      encoding: "utf-8",
      stdio: ["ignore", "pipe", "inherit"],
      maxBuffer: 2 ** 26,
    },
  );
  return printed.trim().split("\n").map((line) => JSON.parse(line));
}

const events = [...pi(question), ...pi("-c", rating), ...pi("-c", next)];
const answers = events
  .filter(({ type, message }) => type === "message_end" && message.role === "assistant")
  .map(({ message: { content, usage } }) => ({
    text: content.filter((part) => part.type === "text").map((part) => part.text).join(""),
    calls: content
      .filter((part) => part.type === "toolCall")
      .map((part) => [part.name, part.arguments]),
    usage: [usage.input, usage.output],
  }));
console.log(JSON.stringify({ answers }));
