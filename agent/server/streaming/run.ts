import type { IncomingMessage } from "node:http";
import { messageOf } from "../../lib/errors.ts";
import type { Runtime } from "../../runtime/port.ts";
import { type Handler, HttpError, type ServedPods } from "../port.ts";
import { readBody } from "../respond.ts";
import { containerOf, podOf } from "./target.ts";

// Commands under way for all clients together. The runtime holds up to 16 MiB of output for each, and so do we.
export const runsMax = 8;

/**
 * Makes the handler of `/run`: one command to its end, its stdout and then its stderr as the answer. A command ends with
 * its client. Answers 429 when {@link runsMax} are under way.
 */
export function createRun({ pods, runtime }: RunDeps): Handler {
  let underWay = 0;
  const execute: Runtime["execSync"] = async (...args) => {
    if (underWay >= runsMax) {
      throw new HttpError(429, `${runsMax} commands are running: try again later`, { "Retry-After": "1" });
    }
    underWay += 1;
    try {
      return await runtime.execSync(...args);
    } catch (err) {
      throw new HttpError(500, messageOf(err));
    } finally {
      underWay -= 1;
    }
  };

  return async ({ request, response, params, query, signal }) => {
    const command = ((await formValue(request, "cmd")) ?? query.get("cmd") ?? "").split(" ");
    const pod = podOf(pods, params);
    const containerID = await containerOf(runtime, pod, params.container ?? "");
    const { stdout, stderr, exitCode } = await execute(containerID, command, 0, signal);
    if (exitCode !== 0) {
      throw new HttpError(500, `command '${command.join(" ")}' exited with ${exitCode}: ${stderr.toString()}`);
    }
    response.writeHead(200, { "Content-Type": "application/json", "Content-Length": stdout.length + stderr.length });
    response.write(stdout);
    response.end(stderr);
  };
}

interface RunDeps {
  readonly pods: ServedPods;
  readonly runtime: Pick<Runtime, "list" | "execSync">;
}

/** A field of the request's form, if it has one. Rejects with HttpError 413 for a form that is too long. */
async function formValue(request: IncomingMessage, name: string): Promise<string | undefined> {
  const [type] = (request.headers["content-type"] ?? "").split(";");
  if (type?.trim().toLowerCase() !== "application/x-www-form-urlencoded") return undefined;
  return new URLSearchParams(await readBody(request)).get(name) ?? undefined;
}
