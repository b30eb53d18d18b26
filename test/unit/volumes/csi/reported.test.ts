import { expect, test } from "vitest";
import { silentLogger } from "../../../../agent/lib/log.ts";
import { ReportedVolumes } from "../../../../agent/volumes/csi/reported.ts";
import { settle } from "../support.ts";

test("a look at the disk that finds what was known is not told", async () => {
  const reported = new ReportedVolumes({ csiDriver: async () => await Promise.resolve(undefined) }, silentLogger);
  const told: (string[] | undefined)[] = [];
  reported.subscribe(() => told.push(reported.list()));
  const look = async (...names: string[]) => {
    reported.found(new Set(names), new AbortController().signal);
    await settle();
  };
  const [a, b] = ["kubernetes.io/csi/d^a", "kubernetes.io/csi/d^b"];
  await look(); // it is known now that there is none
  await look(a, b);
  await look(b, a);
  reported.want("pod/a", a);
  await look(a, b);
  await look(b);
  reported.unwant("pod/a");
  await look(b);
  expect(told).toEqual([[], [a, b], [a, b], [b]]);
});
