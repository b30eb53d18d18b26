import type { TestNode } from "../node/node.ts";

const timeoutMs = 5_000;
// Node.js, because nothing that speaks HTTP is on every machine.
const script = `
  const signal = AbortSignal.timeout(${timeoutMs});
  fetch(process.argv[1], { signal }).then((answer) => answer.text()).then((text) => process.stdout.write(text));
`;

/** The answer of an HTTP server as a process on the node gets it. Rejects with the error's first line. */
export async function askFromNode(node: TestNode, url: string): Promise<string> {
  const { stdout, failure, message } = await node.exec(process.execPath, ["-e", script, url]);
  if (failure !== undefined) throw new Error(message);
  return stdout;
}
