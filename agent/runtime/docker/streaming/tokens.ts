import { randomBytes } from "node:crypto";
import type { Clock, Timer } from "../../../lib/clock.ts";
import { AgentError } from "../../../lib/errors.ts";

// As CRI's streaming server keeps them.
export const tokenLifeMs = 60_000;
export const tokensMax = 1_000;

// Whoever knows it may run a command: nobody is to guess it.
const tokenBytes = 16;

/** Requests that wait for their client, each under a secret that works once and for {@link tokenLifeMs}. */
export class OneTimeTokens<T> {
  readonly #clock: Clock;
  readonly #waiting = new Map<string, { value: T; timer: Timer }>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** @returns the token, of characters that are safe in a URL. Throws TooManyRequests if {@link tokensMax} are waiting. */
  issue(value: T): string {
    if (this.#waiting.size >= tokensMax) {
      throw new AgentError("TooManyRequests", `${tokensMax} sessions wait for their clients: try again in a minute`);
    }
    const token = randomBytes(tokenBytes).toString("base64url");
    const timer = this.#clock.after(tokenLifeMs, () => void this.#waiting.delete(token));
    this.#waiting.set(token, { value, timer });
    return token;
  }

  /** What was issued under a token; undefined if it is unknown, used or too old. */
  take(token: string): T | undefined {
    const found = this.#waiting.get(token);
    found?.timer.cancel();
    this.#waiting.delete(token);
    return found?.value;
  }

  clear(): void {
    for (const { timer } of this.#waiting.values()) timer.cancel();
    this.#waiting.clear();
  }
}
