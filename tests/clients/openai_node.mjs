// The OpenAI SDK for Node: a tool loop, a rating, and one more message.
// Prints what the SDK saw as JSON. Knows nothing of strop.
import OpenAI from "openai";

const [question, rating, next, mode] = process.argv.slice(2);
const tools = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "Current weather in a city",
      parameters: {
        type: "object",
        properties: { city: { type: "string" } },
        required: ["city"],
      },
    },
  },
];

const client = new OpenAI();
const messages = [];
const answers = [];

async function ask() {
  const asked = { model: "tiny", messages, tools, temperature: 0 };
  const completion =
    mode === "stream"
      ? await client.chat.completions
          .stream({ ...asked, stream_options: { include_usage: true } })
          .finalChatCompletion()
      : await client.chat.completions.create(asked);
  const { message } = completion.choices[0];
  messages.push(message);
  const { prompt_tokens, completion_tokens } = completion.usage;
  answers.push({
    text: message.content ?? "",
    calls: (message.tool_calls ?? []).map((call) => [
      call.function.name,
      JSON.parse(call.function.arguments),
    ]),
    usage: [prompt_tokens, completion_tokens],
  });
  return message;
}

for (const content of [question, rating, next]) {
  messages.push({ role: "user", content });
  let message = await ask();
  while (message.tool_calls?.length) {
    for (const call of message.tool_calls) {
      messages.push({ role: "tool", tool_call_id: call.id, content: "21 degrees" });
    }
    message = await ask();
  }
}
console.log(JSON.stringify({ answers }));
