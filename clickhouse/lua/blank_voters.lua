#!lua flags=allow-oom
-- A stream anew, with the same ids, without the hashes of erased voters.
--
-- KEYS[1] dead:{s}, or events:{s} in a restore, when nobody else is there
-- ARGV[1] what stands in the place of a hash   then per voter: hash, ms until which it is erased
-- Returns how many entries were changed; without any the stream is left alone.
--
-- Entries cannot be changed, and a deleted one stays in its node, in memory and in every snapshot, until the whole node
-- goes. Hence all of it anew. Atomic: a crash half-way would leave half a stream. A dead letter is as old as the entry it
-- names (`id`). Groups are made again by the next commits; the counts of entries ever added are kept.
local entries, changed = redis.call('XRANGE', KEYS[1], '-', '+'), 0
for _, entry in ipairs(entries) do
  local ms, fields = tonumber(string.match(entry[1], '^(%d+)')), entry[2]
  for i = 1, #fields, 2 do
    if fields[i] == 'id' then ms = tonumber(string.match(fields[i + 1], '^(%d+)')) or ms end
  end
  for i = 1, #fields, 2 do
    if fields[i] == 'd' then
      for at = 2, #ARGV, 2 do
        if ms <= tonumber(ARGV[at + 1]) then
          local text, count = string.gsub(fields[i + 1], '"' .. ARGV[at] .. '"', '"' .. ARGV[1] .. '"')
          if count > 0 then fields[i + 1], changed = text, changed + 1 end
        end
      end
    end
  end
end
if changed == 0 then
  return 0
end
local last, added, deleted
local info = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then last = info[i + 1] end
  if info[i] == 'entries-added' then added = info[i + 1] end
  if info[i] == 'max-deleted-entry-id' then deleted = info[i + 1] end
end
redis.call('DEL', KEYS[1])
for _, entry in ipairs(entries) do
  redis.call('XADD', KEYS[1], entry[1], unpack(entry[2]))
end
redis.call('XSETID', KEYS[1], last, 'ENTRIESADDED', added, 'MAXDELETEDID', deleted)
return changed
