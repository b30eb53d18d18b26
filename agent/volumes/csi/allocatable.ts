import type { Clock } from "../../lib/clock.ts";
import { isAbort, messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import { Loop } from "../../lib/loop.ts";
import type { CSINodeEntries } from "./csi-node.ts";
import type { OwnedCSIDrivers } from "./drivers.ts";
import type { CSIDriverObjects } from "./port.ts";

// What the API server allows at least; anything less would only be a mistake.
const periodMsMin = 10_000;
// Drivers come and objects change by event; this is for what is neither.
const resyncMs = 600_000;

export interface AllocatableRefreshOptions {
  drivers: Pick<OwnedCSIDrivers, "client" | "names" | "subscribe">;
  objects: CSIDriverObjects;
  csiNode: Pick<CSINodeEntries, "set">;
  clock: Clock;
  log: Logger;
}

/**
 * Asks drivers anew how many volumes the node can have, as often as their CSIDriver objects say
 * (`nodeAllocatableUpdatePeriodSeconds`), and writes it into the CSINode. Runs until `signal` aborts.
 */
export async function refreshAllocatable(options: AllocatableRefreshOptions, signal: AbortSignal): Promise<void> {
  const { drivers, objects, clock, log } = options;
  /** When each driver was last asked; its registration counts as that. */
  const askedAtMs = new Map<string, number>();
  const underway = new Map<string, Promise<void>>();

  const pass = async (): Promise<number> => {
    const names = drivers.names();
    for (const name of askedAtMs.keys()) if (!names.includes(name)) askedAtMs.delete(name);
    let restMs = resyncMs;
    for (const name of names) {
      const periodMs = periodOf((await objects.csiDriver(name, signal))?.spec.nodeAllocatableUpdatePeriodSeconds);
      const lastMs = askedAtMs.get(name) ?? clock.monotonic();
      askedAtMs.set(name, lastMs);
      if (periodMs === undefined || underway.has(name)) continue;
      const dueInMs = lastMs + periodMs - clock.monotonic();
      if (dueInMs <= 0) underway.set(name, ask(name));
      else restMs = Math.min(restMs, dueInMs);
    }
    return restMs;
  };
  const ask = async (name: string): Promise<void> => {
    await refreshDriver(name, options, signal);
    askedAtMs.set(name, clock.monotonic());
    underway.delete(name);
    loop.wake();
  };
  const loop = new Loop({
    clock,
    pass,
    resyncMs,
    retryMs: () => periodMsMin,
    onError: (err) => log.warn({ err: messageOf(err) }, "cannot look at CSIDriver objects"),
  });
  const unsubscribe = [drivers.subscribe(() => loop.wake()), objects.subscribe(() => loop.wake())];
  try {
    await loop.run(signal);
  } finally {
    for (const end of unsubscribe) end();
    await Promise.all(underway.values());
  }
}

/** Asks one driver anew how many volumes the node can have, and writes it into the CSINode. Never rejects. */
export async function refreshDriver(
  name: string,
  { drivers, csiNode, log }: Pick<AllocatableRefreshOptions, "drivers" | "csiNode" | "log">,
  signal: AbortSignal,
): Promise<void> {
  try {
    const client = drivers.client(name);
    const info = await client.nodeGetInfo({ signal });
    // What was said by a driver that has gone meanwhile must not bring its entry back.
    if (drivers.names().includes(name) && drivers.client(name) === client) await csiNode.set(name, info);
  } catch (err) {
    if (isAbort(err)) return;
    log.warn({ driver: name, err: messageOf(err) }, "cannot refresh how many volumes a CSI driver takes");
  }
}

function periodOf(seconds: number | undefined): number | undefined {
  return seconds === undefined || seconds <= 0 ? undefined : Math.max(periodMsMin, seconds * 1_000);
}
