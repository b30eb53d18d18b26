import { hasCode } from "../../lib/errors.ts";
import { RefusedLine } from "./port.ts";

/** A service (or whatever else the key is of) whose rules the kernel or its tool does not take, and why. */
export interface Refusal {
  readonly key: string;
  readonly error: Error;
  /** It is not the chains that are refused, but a rule that leads to them or refuses in their place. */
  readonly isDispatch?: boolean;
}

/**
 * More than this at once: it is not the services that something is wrong with.
 */
export const refusalsMax = 16;

/**
 * Finds out which of these, services or chains that are to go, make a text fail, by applying halves of it. What is accepted stays applied, which does no
 * harm: nothing leads to chains of a service before all of them are there. Rejects with errors other than Invalid.
 *
 * @returns at most {@link refusalsMax}
 */
export async function isolate<T extends { readonly key: string }>(
  items: readonly T[],
  apply: (some: readonly T[]) => Promise<void>,
): Promise<Refusal[]> {
  const refusals: Refusal[] = [];
  const waiting = [items];
  while (refusals.length < refusalsMax) {
    const next = waiting.pop();
    if (next === undefined) break;
    const [first] = next;
    if (first === undefined) continue;
    try {
      await apply(next);
    } catch (err) {
      if (!hasCode(err, "Invalid")) throw err;
      const half = next.length >> 1;
      if (half === 0) refusals.push({ key: first.key, error: err });
      else waiting.push(next.slice(half), next.slice(0, half));
    }
  }
  return refusals;
}

/** The service that the refused line is for, by its comment; undefined if the error names none. Pure. */
export function serviceOfRefusedLine(err: Error): string | undefined {
  if (!(err.cause instanceof RefusedLine)) return undefined;
  return /--comment "?([^\s:"/]+\/[^\s:"/]+)/.exec(err.cause.line)?.[1];
}
