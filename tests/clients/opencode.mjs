// The coding agent opencode: a prompt that needs its shell, a rating, and one more prompt.
// Prints what opencode told as JSON. Knows nothing of strop.
import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const [question, rating, next] = process.argv.slice(2);
const { HOME, OPENAI_BASE_URL, OPENAI_API_KEY } = process.env;
const local = {
  npm: "@ai-sdk/openai-compatible",
  name: "local",
  options: { baseURL: OPENAI_BASE_URL, apiKey: OPENAI_API_KEY },
  models: { tiny: {} },
};
const folder = join(HOME, ".config", "opencode");
mkdirSync(folder, { recursive: true });
writeFileSync(
  join(folder, "opencode.json"),
  JSON.stringify({ provider: { local }, model: "local/tiny", small_model: "local/tiny" }),
);

// Each word is an argument: one with spaces is sent in quotation marks.
function opencode(prompt, ...options) {
  const printed = execFileSync(
    join(import.meta.dirname, "node_modules", ".bin", "opencode"),
    ["run", "--format", "json", ...options, ...prompt.split(" ")],
    { encoding: "utf-8", stdio: ["ignore", "pipe", "inherit"], maxBuffer: 2 ** 26 },
  );
  return printed.trim().split("\n").map((line) => JSON.parse(line));
}

const events = [...opencode(question), ...opencode(rating, "-c"), ...opencode(next, "-c")];
const answers = [];
for (const { type, part } of events) {
  const answer = answers.at(-1);
  if (type === "step_start") answers.push({ text: "", calls: [], usage: null });
  else if (type === "text") answer.text += part.text;
  else if (type === "tool_use") answer.calls.push([part.tool, part.state.input]);
  else if (type === "step_finish") answer.usage = [part.tokens.input, part.tokens.output];
}
console.log(JSON.stringify({ answers }));
