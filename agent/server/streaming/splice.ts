import type { Clock } from "../../lib/clock.ts";
import { messageOf } from "../../lib/errors.ts";
import type { Upgrade } from "../port.ts";
import { plainError } from "../respond.ts";
import { askRuntime, type RuntimeAnswer } from "./dial.ts";
import { requestHead } from "./http-head.ts";
import { pump } from "./pump.ts";
import { relayRefusal } from "./refusal.ts";

/**
 * Hands a client's upgrade on to the runtime and carries bytes between them to the end, without looking at them: SPDY, and
 * the WebSocket protocols that the runtime speaks itself.
 *
 * Rejects with HttpError before anything was written to the client.
 */
export async function splice(upgrade: Upgrade, url: string, clock: Clock): Promise<void> {
  const { request, socket: client, head: early } = upgrade;
  if (early.length > 0) client.unshift(early);
  const { method = "GET", rawHeaders } = request;
  const answer = await askForClient(upgrade, url, clock, (path) =>
    requestHead({ method, path, rawHeaders }, request.socket.remoteAddress),
  );
  if (answer.head.status !== 101) {
    await relayRefusal(answer, client, clock);
    return;
  }
  client.write(answer.rawHead);
  await pump(client, answer.socket, clock, upgrade.signal);
}

/**
 * `askRuntime` for a client that waits, and that may break off meanwhile. Rejects with HttpError 500, also for answers that
 * neither upgrade nor refuse.
 */
export async function askForClient(
  { socket: client, signal }: Pick<Upgrade, "socket" | "signal">,
  url: string,
  clock: Clock,
  request: (path: string, host: string) => string,
): Promise<RuntimeAnswer> {
  const gone = new AbortController();
  const onGone = () => gone.abort();
  client.on("error", onGone).on("close", onGone);
  client.read(0); // a socket that is not read does not notice its reset
  if (client.destroyed) onGone();
  try {
    const options = { clock, signal: AbortSignal.any([signal, gone.signal]) };
    const answer = await askRuntime(url, request, options).catch((err: unknown) => {
      throw plainError(500, messageOf(err));
    });
    if (answer.head.status !== 101 && answer.head.status < 400) {
      answer.socket.destroy();
      throw plainError(500, `invalid upgrade response: status code ${answer.head.status}`);
    }
    return answer;
  } finally {
    client.off("error", onGone).off("close", onGone);
    client.on("error", ignore);
  }
}

const ignore = (): void => {};
