import { beforeEach, describe, expect, test } from "vitest";
import type { ApiClient } from "../../../agent/kube/port.ts";
import type { PersistentVolumeClaim } from "../../../agent/kube/types.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { expandBackoff, expandIfGrown, newSizeState, type SizeState } from "../../../agent/volumes/expand.ts";
import type { BoundClaim } from "../../../agent/volumes/kind.ts";
import { FakeClock } from "./support.ts";

const mebi = 1 << 20;

describe("expandIfGrown", () => {
  let events: string[];
  let claimEvents: string[];
  let patches: unknown[];
  let asked: number[];
  let failure: Error | undefined;
  let state: SizeState;
  beforeEach(() => {
    [events, claimEvents, patches, asked] = [[], [], [], []];
    failure = undefined;
    state = newSizeState();
  });

  const claim = (size: string): BoundClaim => ({
    claim: { metadata: { name: "c", namespace: "shop", uid: "u" }, status: { capacity: { storage: "1Mi" } } },
    volume: { metadata: { name: "pv" }, spec: { capacity: { storage: size } } },
    isReadOnly: false,
  });
  const look = async (
    bound: BoundClaim,
    change: { isInUse?: boolean; isPossible?: boolean; isReadOnly?: boolean } = {},
  ) =>
    await expandIfGrown(
      {
        bound,
        specName: "pv",
        event: (type, reason, message) => events.push(`${type} ${reason} ${message}`),
        signal: new AbortController().signal,
      },
      {
        isReadOnly: false,
        isPossible: true,
        isInUse: false,
        expand: async (bytes) => {
          asked.push(bytes);
          await (failure === undefined ? Promise.resolve() : Promise.reject(failure));
        },
        failureOf: () => "failed",
        ...change,
      },
      state,
      {
        client: {
          patch: async (_: unknown, _key: unknown, patch: unknown) => {
            patches.push(patch);
            return await Promise.resolve(bound.claim satisfies PersistentVolumeClaim);
          },
        } as unknown as ApiClient,
        nodeName: "n1",
        clock: new FakeClock(),
        log: silentLogger,
        event: (about, _type, reason) => claimEvents.push(`${about.name} ${reason}`),
        random: () => 0,
      },
    );

  test("a volume that has its size is left alone", async () => {
    expect(await look(claim("1Mi"))).toBeUndefined();
    expect([asked, patches, events]).toEqual([[], [], []]);
  });

  test("one that has grown is expanded once, and claim and pod are told", async () => {
    await look(claim("4Mi"));
    await look(claim("4Mi"), { isInUse: true });
    expect(asked).toEqual([4 * mebi]);
    expect(patches).toEqual([{ metadata: { uid: "u" }, status: { capacity: { storage: "4Mi" }, conditions: [] } }]);
    expect(events).toEqual([
      'Normal FileSystemResizeSuccessful MountVolume.NodeExpandVolume succeeded for volume "pv" n1',
    ]);
    expect(claimEvents).toEqual(["c FileSystemResizeSuccessful"]);
    await look(claim("8Mi"), { isInUse: true });
    expect(asked).toEqual([4 * mebi, 8 * mebi]);
  });

  test("a failure keeps a new pod waiting, and is told to one that runs, later each time", async () => {
    failure = new Error("no room");
    await expect(look(claim("4Mi"))).rejects.toMatchObject({ step: "NodeExpandVolume", message: "no room" });
    expect(events).toEqual([]);
    expect(await look(claim("4Mi"), { isInUse: true })).toBe(expandBackoff.baseMs);
    expect(await look(claim("4Mi"), { isInUse: true })).toBe(expandBackoff.baseMs * 2);
    expect(events[0]).toBe(
      'Warning VolumeResizeFailed NodeExpandVolume.NodeExpandVolume failed for volume "pv" : no room',
    );
    failure = undefined;
    expect(await look(claim("4Mi"), { isInUse: true })).toBeUndefined();
    expect(state).toEqual({ knownBytes: 4 * mebi, failures: 0 });
  });

  test("what cannot be expanded here has its size, what cannot be written to is told of once", async () => {
    await look(claim("4Mi"), { isPossible: false });
    expect([asked, patches, events, state.knownBytes]).toEqual([[], [], [], 4 * mebi]);
    state = newSizeState();
    await look(claim("4Mi"), { isReadOnly: true });
    await look(claim("4Mi"), { isReadOnly: true });
    expect(asked).toEqual([]);
    expect(events).toEqual([expect.stringContaining("FileSystemResizeFailed")]);
    expect(claimEvents).toEqual(["c FileSystemResizeFailed"]);
  });
});
