import type { Clock } from "../../lib/clock.ts";
import { hasCode } from "../../lib/errors.ts";
import type { Runtime } from "../../runtime/port.ts";

// A little less than the pace at which followers ask, so that each question of one follower is a new one.
const answerValidMs = 900;

/**
 * Whether containers run, asked on behalf of everyone who follows their logs: a hundred followers of one container cost
 * one call a second.
 */
export class ContainerLiveness {
  readonly #runtime: Pick<Runtime, "containerStatus">;
  readonly #clock: Clock;
  readonly #answers = new Map<string, Promise<boolean>>();

  constructor(runtime: Pick<Runtime, "containerStatus">, clock: Clock) {
    this.#runtime = runtime;
    this.#clock = clock;
  }

  /**
   * A runtime that does not answer in time says nothing about the container: it counts as running. One that is not there
   * any more has ended. Rejects with other errors of the runtime.
   */
  async isRunning(containerID: string): Promise<boolean> {
    let answer = this.#answers.get(containerID);
    if (answer === undefined) {
      answer = this.#ask(containerID);
      this.#answers.set(containerID, answer);
      const forget = () => void this.#answers.delete(containerID);
      answer.then(() => this.#clock.after(answerValidMs, forget), forget);
    }
    return await answer;
  }

  async #ask(containerID: string): Promise<boolean> {
    try {
      return (await this.#runtime.containerStatus(containerID)).state === "running";
    } catch (err) {
      if (hasCode(err, "Unavailable", "DeadlineExceeded")) return true;
      if (hasCode(err, "NotFound")) return false;
      throw err;
    }
  }
}
