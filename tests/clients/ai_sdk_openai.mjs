// The AI SDK with its OpenAI provider, which names earlier answers by their ids: a tool loop, a
// rating, and one more message. Prints what the SDK saw as JSON. Knows nothing of strop.
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";

const [question, rating, next, mode] = process.argv.slice(2);
const provider = createOpenAI({
  baseURL: process.env.OPENAI_BASE_URL,
  apiKey: process.env.OPENAI_API_KEY,
});
const asked = {
  model: provider("tiny"),
  temperature: 0,
  stopWhen: stepCountIs(5),
  tools: {
    get_weather: tool({
      description: "Current weather in a city",
      inputSchema: jsonSchema({
        type: "object",
        properties: { city: { type: "string" } },
        required: ["city"],
      }),
      execute: async () => "21 degrees",
    }),
  },
};

const messages = [];
const answers = [];
for (const content of [question, rating, next]) {
  messages.push({ role: "user", content });
  const result =
    mode === "stream" ? streamText({ ...asked, messages }) : await generateText({ ...asked, messages });
  for (const { text, toolCalls, usage } of await result.steps) {
    answers.push({
      text,
      calls: toolCalls.map((call) => [call.toolName, call.input]),
      usage: [usage.inputTokens, usage.outputTokens],
    });
  }
  messages.push(...(await result.response).messages);
}
console.log(JSON.stringify({ answers }));
