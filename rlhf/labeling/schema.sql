-- The label store. Ids of items are never shown to labelers: pages know a task by its random key only.
-- Times are Unix seconds.

create table if not exists settings (
    name text primary key,
    value text not null  -- JSON
);

create table if not exists batches (
    id integer primary key,
    name text not null unique,
    priority integer not null,  -- a higher one comes first
    created real not null
);

create table if not exists items (
    id integer primary key,
    batch integer not null references batches,
    digest text not null unique,  -- of kind, prompt and completions in any order
    kind text not null check (kind in ('comparison', 'demonstration')),
    prompt text not null,  -- JSON: text or messages
    completions text not null,  -- JSON: list of texts
    sources text,  -- JSON: names of the systems, by index of the completion
    gold text,  -- JSON: ranks, flags, demonstration of a trusted labeler
    wanted integer not null,  -- number of labelers
    judged integer not null default 0,  -- judgments that are not skips, by labelers who are past screening
    place integer not null,  -- minus the priority of the batch: the queue is in the order of (place, id)
    created real not null
);
create index if not exists wanting on items (place, id) where wanted > judged;
create index if not exists gold_items on items (place, id) where gold is not null;
create index if not exists items_of_batch on items (batch);

create table if not exists labelers (
    id integer primary key,
    name text not null unique,
    role text not null check (role in ('labeler', 'admin')),
    screening text not null check (screening in ('none', 'pending', 'passed', 'failed')),
    held_out integer not null default 0,  -- her labels are validation data
    link_hash text unique,
    link_expires real,
    revoked integer not null default 0,
    done integer not null default 0,  -- tasks that she has judged or skipped
    -- No item before this one in the queue is for her. It saves walking past all that she has judged.
    next_place integer not null default -4611686018427387904,
    next_item integer not null default 0,
    created real not null
);

create table if not exists sessions (
    secret_hash text primary key,
    labeler integer not null references labelers,
    csrf text not null,
    expires real not null
) without rowid;
create index if not exists sessions_of_labeler on sessions (labeler);

create table if not exists tasks (
    key text primary key,
    item integer not null references items,
    labeler integer not null references labelers,
    shown text not null,  -- JSON: index of the completion at each position on the screen
    draft text,  -- JSON as the page sent it
    expires real not null,  -- end of the lease
    started real not null,
    active real not null default 0,  -- seconds in front of the screen
    counted integer not null,  -- 0 during screening: the item wants other labelers all the same
    revision integer not null default 0,  -- number of times that it was judged
    unique (item, labeler)
) without rowid;
create index if not exists unjudged_tasks on tasks (labeler, expires) where revision = 0;

create table if not exists judgments (
    key text primary key references tasks,
    item integer not null references items,
    labeler integer not null references labelers,
    ranks text,  -- JSON: rank of each completion, 0 = best, equal = tie
    ratings text,  -- JSON: {"rating", "flags", "notes"} of each completion
    demonstration text,
    skipped text,  -- the reason
    unrankable integer not null default 0,
    notes text not null default '',
    grade integer,  -- of a demonstration in screening, 1 to 7, by an admin
    seconds real not null,
    created real not null,
    revised real
) without rowid;
create index if not exists judgments_of_labeler on judgments (labeler, coalesce(revised, created));
create index if not exists judgments_of_item on judgments (item);
create index if not exists judgments_in_time on judgments (created);

-- Judgments that were replaced, as JSON. Nothing that a labeler has submitted is lost.
create table if not exists revisions (
    key text not null references judgments,
    revision integer not null,
    content text not null,
    primary key (key, revision)
) without rowid;

-- What the training stages and the evaluation read, in the order of time: one JSON object each, with the columns of
-- rlhf.data.schemas. A labeler who did not pass screening has none.
create view if not exists label_rows (kind, content) as
with judged as (
    select j.*, i.prompt, i.completions, i.sources,
        l.name as labeler_name, case when l.held_out then 'heldout' end as labeler_group
    from judgments j join items i on i.id = j.item join labelers l on l.id = j.labeler
    where j.skipped is null and l.screening in ('none', 'passed')
),
-- In a patch, keys with null are left out.
every_row (kind, content, created, key) as (
    select 'comparison', json_patch(
        json_object(
            'prompt', json(prompt), 'completions', json(completions), 'ranks', json(ranks), 'labeler_id', labeler_name
        ),
        json_object(
            'labeler_group', labeler_group, 'completion_sources', json(sources),
            'ratings', (
                select case when count(*) = count(json_extract(value, '$.rating')) and count(*) > 0
                    then json_group_array(json_extract(value, '$.rating')) end
                from json_each(coalesce(judged.ratings, '[]'))
            )
        )
    ), created, key
    from judged where ranks is not null
    union all
    select 'demonstration', json_patch(
        json_object('prompt', json(prompt), 'completion', demonstration, 'labeler_id', labeler_name),
        json_object('labeler_group', labeler_group)
    ), created, key
    from judged where demonstration is not null
    union all
    select 'rating', json_object(
        'prompt', json(prompt), 'completion', json_extract(completions, '$[' || one.key || ']'),
        'rating', json_extract(one.value, '$.rating'), 'flags', json(json_extract(one.value, '$.flags')),
        'labeler_id', labeler_name
    ), created, judged.key
    from judged, json_each(judged.ratings) one where json_extract(one.value, '$.rating') is not null
)
select kind, content from every_row order by created, key;
