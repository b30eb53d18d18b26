import { expect, test } from "vitest";
import { createLogger, setLogLevel } from "../../../agent/lib/log.ts";

test("a new level counts for all loggers, however and whenever they were made", () => {
  const lines: string[] = [];
  const root = createLogger({ level: "info", stream: { write: (line) => void lines.push(line) } });
  const child = root.child({ pod: "ns/web" });
  const grandchild = child.child({ container: "app" });
  grandchild.debug("not yet");
  setLogLevel(root, "debug");
  for (const logger of [root, child, grandchild, root.child({})]) logger.debug("now");
  setLogLevel(root, "warn");
  for (const logger of [root, child, grandchild]) logger.info("no more");
  expect(lines.map((line) => (JSON.parse(line) as { msg: string }).msg)).toEqual(["now", "now", "now", "now"]);
});

test("loggers that nobody holds any more cost nothing in the long run", () => {
  const root = createLogger({ level: "silent" });
  for (let i = 0; i < 100_000; i += 1) root.child({ i });
  expect(() => setLogLevel(root, "info")).not.toThrow();
});
