import type { IncomingMessage } from "node:http";
import { messageOf } from "../../lib/errors.ts";
import type { Runtime } from "../../runtime/port.ts";
import { type Exchange, HttpError, type ServedPods } from "../port.ts";
import { readBody } from "../respond.ts";
import { containerOf, podOf } from "./target.ts";

/** `/run`: one command to its end, its stdout and then its stderr as the answer. */
export async function run(
  { pods, runtime }: { pods: ServedPods; runtime: Pick<Runtime, "list" | "execSync"> },
  { request, response, params, query }: Exchange,
): Promise<void> {
  const command = ((await formValue(request, "cmd")) ?? query.get("cmd") ?? "").split(" ");
  const pod = podOf(pods, params);
  const containerID = await containerOf(runtime, pod, params.container ?? "");
  const { stdout, stderr, exitCode } = await runtime.execSync(containerID, command, 0).catch((err: unknown) => {
    throw new HttpError(500, messageOf(err));
  });
  if (exitCode !== 0) {
    throw new HttpError(500, `command '${command.join(" ")}' exited with ${exitCode}: ${stderr.toString()}`);
  }
  response.writeHead(200, { "Content-Type": "application/json", "Content-Length": stdout.length + stderr.length });
  response.write(stdout);
  response.end(stderr);
}

/** A field of the request's form, if it has one. Rejects with HttpError 413 for a form that is too long. */
async function formValue(request: IncomingMessage, name: string): Promise<string | undefined> {
  const [type] = (request.headers["content-type"] ?? "").split(";");
  if (type?.trim().toLowerCase() !== "application/x-www-form-urlencoded") return undefined;
  return new URLSearchParams(await readBody(request)).get(name) ?? undefined;
}
