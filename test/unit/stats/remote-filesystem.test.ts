import { expect, test } from "vitest";
import { createRemoteFilesystems, statfsTimeoutMs } from "../../../agent/stats/remote-filesystem.ts";
import { FakeClock } from "../kube/fake-clock.ts";

const figures = { capacityBytes: 1, availableBytes: 1, usedBytes: 0, inodes: 1, inodesFree: 1 };
const never = new AbortController().signal;

test("an answer is given on, and no timer stays", async () => {
  const clock = new FakeClock();
  expect(await createRemoteFilesystems(clock, async () => figures).ask("/mnt", never)).toEqual(figures);
  expect(clock.waiting).toBe(0);
});

test("a server that is away holds one thread, however often it is asked", async () => {
  const clock = new FakeClock();
  let asked = 0;
  const answer = Promise.withResolvers<typeof figures>();
  const remote = createRemoteFilesystems(clock, async () => {
    asked += 1;
    return await answer.promise;
  });
  const first = expect(remote.ask("/mnt", never)).rejects.toThrow("/mnt did not answer within 5000 ms");
  await clock.advance(statfsTimeoutMs);
  await first;
  await expect(remote.ask("/mnt", never)).rejects.toThrow("its server may be away");
  expect(asked).toBe(1);
  answer.resolve(figures);
  await clock.advance(0);
  expect(await remote.ask("/mnt", never)).toEqual(figures);
});

test("the agent's end does not wait for it", async () => {
  const stop = new AbortController();
  const hangs = createRemoteFilesystems(new FakeClock(), () => new Promise(() => {}));
  const asked = hangs.ask("/mnt", stop.signal);
  stop.abort(new Error("the agent stops"));
  await expect(asked).rejects.toThrow("the agent stops");
});
