import { VolumeStepError } from "./step-error.ts";

/** What has to come, by somebody else's doing, before what failed can succeed. */
export type Awaited = "object" | "claim" | "new claim" | "binding" | "attachment" | "driver" | "other pod";

/**
 * The cause of an error that ends when something comes. People are told by it what they can do, whatever the error's words
 * are.
 */
class Awaits extends Error {
  readonly awaited: Awaited;

  constructor(awaited: Awaited, options?: ErrorOptions) {
    super(`waits for ${awaited}`, options);
    this.awaited = awaited;
  }
}

/** Options of an error: what it waits for, and the error that caused it, if there is one. */
export function awaiting(awaited: Awaited, cause?: unknown): ErrorOptions {
  return { cause: new Awaits(awaited, { cause }) };
}

/** What an error, or one that caused it, waits for; undefined if nobody knows. Pure. */
export function awaitedBy(err: unknown): Awaited | undefined {
  for (let at = err; at instanceof Error; at = at.cause) {
    if (at instanceof Awaits) return at.awaited;
    if (at instanceof VolumeStepError && attachSteps.has(at.step)) return "attachment";
  }
  return undefined;
}

const attachSteps: ReadonlySet<string> = new Set(["WaitForAttach", "VerifyControllerAttachedVolume"]);
