import { readFile, writeFile } from "node:fs/promises";
import { expect, test } from "vitest";
import { kubeletStart, proxyStart, unsupportedFieldsMarkdown } from "../../../agent/config/help.ts";
import { kubeletSections } from "../../../agent/config/kubelet-config.ts";
import { proxySections } from "../../../agent/config/proxy-config.ts";

const path = new URL("../../../README.md", import.meta.url).pathname;
const lists = {
  kubelet: [kubeletStart, ...kubeletSections],
  proxy: [proxyStart, ...proxySections],
};

test("the README lists the fields and flags that have no effect yet (UPDATE_README=1 writes the lists)", async () => {
  let text = await readFile(path, "utf8");
  for (const [name, sections] of Object.entries(lists)) {
    const block = new RegExp(`(<!-- later: ${name} -->\n).*?(<!-- end -->)`, "s");
    expect(text).toMatch(block);
    text = text.replace(
      block,
      (_, start: string, end: string) => `${start}\n${unsupportedFieldsMarkdown(sections)}\n${end}`,
    );
  }
  if (process.env["UPDATE_README"] !== undefined) await writeFile(path, text);
  expect(await readFile(path, "utf8")).toBe(text);
});
